"""audiocraft -> ours -> transformers -> ours -> audiocraft: the same tensors and names, opened by everyone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EncodecModel, MusicgenForConditionalGeneration

from musicgen_ft.checkpoint import audiocraft_format, transformers_format
from musicgen_ft.checkpoint.base import Base, open_base
from musicgen_ft.codec import Codec
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.peers import audiocraft, parity, transformers


def tensors(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, weights_only=True)["best_state"]
    assert isinstance(state, dict)
    return state


def bit_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


def write(folder: Path, base: Base, flavour: str) -> Path:
    """The base's tensors, untouched, in one of the formats."""
    folder.mkdir()
    state, config, codec, text_encoder = base.lm_state(), base.lm_config, base.codec(), base.text_encoder()
    if flavour == "transformers":
        transformers_format.write_folder(folder, state, config, codec, text_encoder)
    else:
        audiocraft_format.write_folder(folder, state, config, codec, text_encoder_id="t5")
        transformers_format.write_text_encoder(folder / "t5", text_encoder)
    return folder


@pytest.fixture
def release(audiocraft_folder: Path, tmp_path: Path, dtype: torch.dtype) -> Path:
    """audiocraft's folder with the language model in a dtype."""
    folder = tmp_path / "release"
    folder.mkdir()
    for name in ("t5", "compression_state_dict.bin"):
        (folder / name).symlink_to(audiocraft_folder / name)
    package = torch.load(audiocraft_folder / "state_dict.bin", weights_only=True)
    package["best_state"] = {name: value.to(dtype) for name, value in package["best_state"].items()}
    torch.save(package, folder / "state_dict.bin")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_way_round_both_formats_gives_bit_equal_tensors(
    release: Path, tmp_path: Path, text_encoder: TextEncoder, dtype: torch.dtype
) -> None:
    there = write(tmp_path / "transformers", open_base(str(release)), "transformers")
    back = write(tmp_path / "audiocraft", open_base(str(there)), "audiocraft")
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        assert bit_equal(tensors(back / name), tensors(release / name)), name
    assert {value.dtype for value in tensors(back / "state_dict.bin").values()} == {dtype}

    reader: Any = MusicgenForConditionalGeneration
    opened, info = reader.from_pretrained(str(there), output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    again = audiocraft.open_generator(back, text_encoder)  # strict on every key
    assert again.lm.num_codebooks == opened.config.decoder.num_codebooks == 4


@pytest.mark.parametrize("flavour", ["audiocraft", "transformers"])
def test_an_export_of_either_base_plays_alike_in_both_readers(
    request: pytest.FixtureRequest, tmp_path: Path, text_encoder: TextEncoder, flavour: str
) -> None:
    base: Base = request.getfixturevalue(f"{flavour}_base")
    folder = write(tmp_path / "both", base, "audiocraft")
    transformers_format.write_folder(folder, base.lm_state(), base.lm_config, base.codec(), text_encoder)
    codes = torch.randint(64, (1, 4, 17), generator=torch.Generator().manual_seed(0))
    differences = parity.check_export(
        folder,
        base.lm_state(),
        base.lm_config,
        text_encoder,
        codes,
        "slow warm piano",
        formats=["audiocraft", "transformers"],
    )
    assert differences.keys() == {"audiocraft", "transformers"}
    assert max(differences.values()) < 1e-5  # measured 0.0 and 1.3e-6


def test_an_export_that_plays_otherwise_is_refused(
    audiocraft_base: Base, tmp_path: Path, text_encoder: TextEncoder
) -> None:
    folder = write(tmp_path / "export", audiocraft_base, "audiocraft")
    state = audiocraft_base.lm_state()
    state["out_norm.weight"] = state["out_norm.weight"] * 1.01
    codes = torch.randint(64, (1, 4, 17), generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="audiocraft opens the export, but its logits differ"):
        parity.check_export(
            folder, state, audiocraft_base.lm_config, text_encoder, codes, "slow", formats=["audiocraft"]
        )


def test_large_logits_may_differ_by_more_as_their_rounding_does(
    transformers_base: Base, tmp_path: Path, text_encoder: TextEncoder
) -> None:
    state, config = transformers_base.lm_state(), transformers_base.lm_config
    state["out_norm.weight"] = state["out_norm.weight"] * 1000
    state["out_norm.bias"] = state["out_norm.bias"] * 1000
    transformers_format.write_folder(tmp_path / "loud", state, config, transformers_base.codec(), text_encoder)
    codes = torch.randint(64, (1, 4, 17), generator=torch.Generator().manual_seed(0))
    words = (config, text_encoder, codes, "slow")
    found = parity.check_export(tmp_path / "loud", state, *words, formats=["transformers"])
    assert found["transformers"] > parity.TOLERANCE
    state["out_norm.weight"] = state["out_norm.weight"] * 1.01
    with pytest.raises(RuntimeError, match="transformers opens the export, but its logits differ"):
        parity.check_export(tmp_path / "loud", state, *words, formats=["transformers"])


# ---- the codec -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec(audiocraft_base: Base) -> Codec:
    return audiocraft_base.codec()


@pytest.mark.parametrize("num_samples", [1, 23, 24, 25, 100, 1200, 4801])
@torch.no_grad()
def test_codes_and_waveforms_equal_audiocrafts_encodec(musicgen: Any, codec: Codec, num_samples: int) -> None:
    waveform = 0.5 * torch.randn(3, 1, num_samples, generator=torch.Generator().manual_seed(num_samples))
    expected, _ = musicgen.compression_model.encode(waveform)
    codes = codec.encode(waveform)
    assert torch.equal(codes, expected)
    found, theirs = codec.decode(codes), musicgen.compression_model.decode(expected)
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-6)  # measured 0.0


def test_the_codec_is_of_audiocrafts_sizes(musicgen: Any, codec: Codec) -> None:
    theirs = musicgen.compression_model
    found = (codec.spec.sample_rate, codec.spec.frame_rate, codec.spec.n_q, codec.spec.card, codec.spec.channels)
    assert found == (theirs.sample_rate, theirs.frame_rate, theirs.num_codebooks, theirs.cardinality, theirs.channels)
    waveform = 0.5 * torch.randn(1, 1, 9600, generator=torch.Generator().manual_seed(0))
    assert codec.encode(waveform).unique().numel() > 30  # else equal codes would tell little


@torch.no_grad()
def test_codes_equal_transformers_encodec(hf_musicgen: Any, transformers_base: Base) -> None:
    assert type(hf_musicgen.audio_encoder) is EncodecModel
    waveform = 0.5 * torch.randn(2, 1, 2401, generator=torch.Generator().manual_seed(0))
    encoded: Any = hf_musicgen.audio_encoder.encode(waveform)
    expected = encoded.audio_codes[0]
    assert torch.equal(transformers_base.codec().encode(waveform), expected)
    assert transformers.open_generator(transformers_base.folder).config.audio_encoder.frame_rate == 50
