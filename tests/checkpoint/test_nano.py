"""``nano``: the same bytes at every call, small, and its parts do what a released model's do."""

import hashlib
from pathlib import Path

import torch

from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.checkpoint.nano import NanoSizes, write_untrained
from musicgen_ft.codec import Codec
from musicgen_ft.model.conditioning import TextEncoder


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_nano_has_the_same_bytes_at_every_call(nano_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # whatever was drawn before
    write_untrained(tmp_path, NanoSizes())
    assert digests(tmp_path) == digests(nano_folder)


def test_building_nano_leaves_the_random_numbers_of_the_caller_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    write_untrained(tmp_path, NanoSizes())
    assert torch.equal(torch.rand(3), expected)


def test_nano_is_smaller_than_16_mib(nano_folder: Path) -> None:
    assert sum(file.stat().st_size for file in nano_folder.rglob("*")) < 16 * 2**20


def test_nano_has_the_architecture_of_the_released_models_at_toy_size(nano_folder: Path) -> None:
    config = open_base(str(nano_folder)).lm_config
    assert config.delays == (0, 1, 2, 3)
    assert config.dim // config.num_heads == 64
    assert config.ffn_dim == 4 * config.dim
    assert config.max_duration_s == 30.0
    assert config.dropout == 0.0


def test_different_sounds_have_different_codes(nano_codec: Codec) -> None:
    time_s = torch.arange(16_000) / 16_000
    sounds = [0.3 * torch.sin(2 * torch.pi * pitch * time_s) for pitch in (110.0, 440.0, 1760.0)]
    sounds.append(0.2 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)))
    codes = nano_codec.encode(torch.stack(sounds)[:, None])
    for i in range(4):
        for j in range(i):
            assert (codes[i] == codes[j]).float().mean() < 0.2
    assert codes[3].unique().numel() > 50  # noise takes many of the 256 entries


def test_words_of_music_are_one_token_each_and_any_text_can_be_spelled(text_encoder: TextEncoder) -> None:
    ids, _ = text_encoder.tokenize(["slow warm piano with soft strings"])
    assert ids.shape[1] == 6 + 1
    unknown = text_encoder.tokenizer.unk_token_id
    ids, _ = text_encoder.tokenize(["Xylophone #7 (live) @ 3:45!"])
    assert unknown not in ids


def test_texts_give_different_states(text_encoder: TextEncoder) -> None:
    texts = ["calm piano", "heavy techno", "calm techno"]
    states = [text_encoder.encode([text]).states for text in texts]
    for i in range(3):
        for j in range(i):
            assert (states[i] - states[j]).abs().max() > 0.1
