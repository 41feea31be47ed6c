"""CLAP from a folder: what transformers gives, window by window, with nothing drawn by chance."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from musicgen_ft.errors import UserError
from musicgen_ft.evaluation.clap import Clap, open_clap


@pytest.fixture(scope="module")
def clap(clap_folder: Path) -> Clap:
    found = open_clap(str(clap_folder))
    assert found is not None
    return found


def sound(seconds: float, *, rate: int = 8000, channels: int = 1, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(channels, round(seconds * rate), generator=torch.Generator().manual_seed(seed))


def test_a_clip_and_a_text_are_scored_as_transformers_scores_them(clap: Clap, clap_folder: Path) -> None:
    model = ClapModel.from_pretrained(clap_folder).eval()
    waveform, text = sound(1.0), "slow waltz with piano"
    features = ClapFeatureExtractor.from_pretrained(clap_folder)(
        waveform[0].numpy(), sampling_rate=8000, return_tensors="pt"
    )
    words = AutoTokenizer.from_pretrained(clap_folder)([text], return_tensors="pt")
    with torch.no_grad():
        peer = model(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"],
            input_features=features["input_features"], is_longer=features["is_longer"],
        )  # fmt: skip
    expected = torch.cosine_similarity(peer.audio_embeds, peer.text_embeds).item()

    assert clap.score(waveform, 8000, text) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(clap.embed(waveform, 8000), peer.audio_embeds)


def test_longer_sound_is_heard_in_windows_one_after_the_other(clap: Clap) -> None:
    waveform = sound(2.6)
    found = clap.embed(waveform, 8000)
    assert found.shape == (3, clap.dim) == (3, 6)
    torch.testing.assert_close(found[1], clap.embed(waveform[:, 8000:16000], 8000)[0])
    assert torch.equal(clap.embed(waveform, 8000), found)
    assert clap.embed(sound(2.4), 8000).shape[0] == 2  # the rest is less than half a window
    assert clap.embed(sound(0.1), 8000).shape[0] == 1
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_other_rates_are_resampled_and_channels_averaged(clap: Clap) -> None:
    stereo = sound(0.9, rate=32_000, channels=2)
    assert clap.embed(stereo, 32_000).shape == (1, 6)
    torch.testing.assert_close(clap.embed(stereo, 32_000), clap.embed(stereo.mean(0, keepdim=True), 32_000))


def test_texts_of_any_length_are_read(clap: Clap) -> None:
    found = clap.embed_text(["slow waltz", "techno " * 300, ""])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found[0], clap.embed_text(["slow waltz"])[0])
    assert not torch.allclose(found[0], found[1])


def test_weights_in_a_pickle_of_tensors_are_read_too(clap: Clap, clap_folder: Path, tmp_path: Path) -> None:
    """The released larger_clap_music has no safetensors."""
    folder = Path(shutil.copytree(clap_folder, tmp_path / "clap"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found = open_clap(str(folder))
    assert found is not None
    assert torch.equal(found.embed(sound(1.0), 8000), clap.embed(sound(1.0), 8000))


def test_none_is_taken_where_none_is_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(name: str, **how: object) -> str:
        assert how["local_files_only"] is True
        raise FileNotFoundError(name)

    monkeypatch.setattr("musicgen_ft.evaluation.clap.snapshot_download", fetch)
    assert open_clap(None) is None


def test_the_one_in_the_cache_is_taken_unless_it_is_half_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clap_folder: Path
) -> None:
    cached = clap_folder
    monkeypatch.setattr("musicgen_ft.evaluation.clap.snapshot_download", lambda *_, **__: str(cached))
    assert open_clap(None) is not None
    cached = tmp_path
    assert open_clap(None) is None


def broken_type(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (broken_type, "describes no CLAP, expected model_type clap"),
        (no_tokenizer, "has no tokenizer or preprocessor, expected tokenizer.json or vocab.json"),
        (no_weights, "neither model.safetensors nor pytorch_model.bin"),
    ],
)
def test_what_is_no_clap_is_refused(
    clap_folder: Path, tmp_path: Path, breaks: Callable[[Path], None], message: str
) -> None:
    folder = Path(shutil.copytree(clap_folder, tmp_path / "clap"))
    breaks(folder)
    with pytest.raises(UserError, match=message):
        open_clap(str(folder))


@pytest.mark.parametrize("name", ["nowhere", "no/such/place", "nobody/no_clap"])
def test_a_name_that_is_nothing_is_told_with_one_that_is(name: str) -> None:
    with pytest.raises(UserError, match=rf"--clap {name}: no such folder.*laion/larger_clap_music"):
        open_clap(name)
