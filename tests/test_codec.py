"""Encoding and decoding with nano's EnCodec; against audiocraft's in tests/parity."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.codec import Codec, _windows
from musicgen_ft.errors import UserError
from musicgen_ft.pretraining.untrained import NanoSizes, untrained_encodec
from musicgen_ft.weights import state_sha256

HOP = 320
"""Samples per frame of nano: 16 kHz / 50 Hz."""
AWKWARD = [1, HOP - 1, HOP, HOP + 1, 7 * HOP + 13]


@pytest.fixture(scope="module")
def signal() -> Callable[[int], np.ndarray]:
    """A function that gives the first samples of a gliding tone with bursts of noise, float32 [1, L] at 16 kHz."""
    rng, time_s = np.random.default_rng(0), np.arange(20 * 16_000) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * (200 + 100 * np.sin(0.7 * time_s)) * time_s)
    noise = 0.1 * rng.standard_normal(len(time_s)) * (np.sin(3 * time_s) > 0)
    samples = (tone + noise).astype(np.float32)[None]
    return lambda num_samples: samples[:, :num_samples]


def cut(samples: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """The samples in blocks of these sizes, again and again."""
    blocks, start, turn = [], 0, 0
    while start < samples.shape[1]:
        blocks.append(samples[:, start : start + sizes[turn % len(sizes)]])
        start += sizes[turn % len(sizes)]
        turn += 1
    return blocks


# ---- one piece -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", AWKWARD)
def test_encode_gives_a_frame_for_each_hop_begun(
    nano_codec: Codec, signal: Callable[[int], np.ndarray], num_samples: int
) -> None:
    waveform = torch.from_numpy(signal(num_samples)).expand(3, 1, -1)
    codes = nano_codec.encode(waveform)
    assert codes.shape == (3, 4, math.ceil(num_samples / HOP))
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < 256


def test_decode_gives_a_hop_of_samples_for_each_frame(nano_codec: Codec) -> None:
    waveform = nano_codec.decode(torch.randint(256, (2, 4, 7)))
    assert waveform.shape == (2, 1, 7 * HOP)
    assert waveform.dtype == torch.float32


def test_the_spec_tells_what_the_codec_does(nano_codec: Codec) -> None:
    spec = nano_codec.spec
    assert (spec.sample_rate, spec.frame_rate, spec.channels, spec.n_q, spec.card) == (16_000, 50, 1, 4, 256)
    assert spec.hop_length == HOP


def test_the_codec_is_frozen_fp32_and_no_module(nano_codec: Codec) -> None:
    assert not isinstance(nano_codec, torch.nn.Module)
    assert not nano_codec.model.training
    assert {(p.dtype, p.requires_grad) for p in nano_codec.model.parameters()} == {(torch.float32, False)}


@pytest.mark.parametrize("changes", [{"use_causal_conv": True}, {"normalize": True}, {"chunk_length_s": 1.0}])
def test_a_codec_that_is_not_musicgens_is_refused(changes: dict[str, Any]) -> None:
    config = EncodecConfig(num_filters=2, hidden_size=4, codebook_size=8, codebook_dim=4, **changes)
    with pytest.raises(UserError, match="MusicGen's EnCodec does not"):
        Codec(EncodecModel(config), id="other")


# ---- whole tracks in windows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [*AWKWARD, 2 * 16_000])
def test_a_track_no_longer_than_a_window_gives_exactly_the_codes_of_encode(
    nano_codec: Codec, signal: Callable[[int], np.ndarray], num_samples: int
) -> None:
    samples = signal(num_samples)
    expected = nano_codec.encode(torch.from_numpy(samples)[None])[0].numpy()
    found = nano_codec.encode_track(cut(samples, [1000, 333]), window_s=2.0)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("context_s", [0.5, 1.0, 2.0])
def test_windows_with_context_give_the_codes_of_one_piece_where_the_lstm_remembers_little(
    signal: Callable[[int], np.ndarray], context_s: float
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2306)
        codec = Codec(untrained_encodec(NanoSizes(num_filters=8, latent_dim=32)), id="untrained")
    samples = signal(20 * 16_000)
    whole = codec.encode(torch.from_numpy(samples)[None])[0].numpy()
    found = codec.encode_track([samples], window_s=2.0, context_s=context_s)
    assert found.shape == whole.shape == (4, 1000)
    # Measured, over ten windows: 100% equal. 99.5% leaves room for near ties on another machine.
    assert (found == whole).mean(1).min() >= 0.995


@pytest.mark.parametrize(("context_s", "share"), [(0.5, 0.85), (1.0, 0.87), (2.0, 0.94)])
def test_windows_with_context_give_nearly_the_codes_of_one_piece_and_the_more_the_longer_it_is(
    nano_codec: Codec, signal: Callable[[int], np.ndarray], context_s: float, share: float
) -> None:
    """EnCodec's LSTM remembers for seconds: of the fourth codebook 0.891, 0.905 and 0.968, over ten windows."""
    samples = signal(20 * 16_000)
    whole = nano_codec.encode(torch.from_numpy(samples)[None])[0].numpy()
    found = nano_codec.encode_track([samples], window_s=2.0, context_s=context_s)
    assert found.shape == whole.shape == (4, 1000)
    assert (found == whole).mean(1).min() >= share


def test_windows_without_context_do_not_give_the_codes_of_one_piece(
    nano_codec: Codec, signal: Callable[[int], np.ndarray]
) -> None:
    samples = signal(20 * 16_000)
    whole = nano_codec.encode(torch.from_numpy(samples)[None])[0].numpy()
    found = nano_codec.encode_track([samples], window_s=2.0, context_s=0.0)
    assert (found == whole).mean() < 0.96  # measured 92%: what the context is for


@pytest.mark.parametrize("num_samples", [1, 16_000 - 1, 16_000, 16_000 + 1, 3 * 16_000 + HOP + 1, 61_234])
@pytest.mark.parametrize("sizes", [[1 << 20], [HOP], [4096, 17, 999], [16_000, 1]])
def test_codes_of_a_track_depend_on_its_samples_and_not_on_its_blocks(
    nano_codec: Codec, signal: Callable[[int], np.ndarray], num_samples: int, sizes: list[int]
) -> None:
    samples = signal(num_samples)
    found = nano_codec.encode_track(cut(samples, sizes), window_s=1.0, context_s=0.2)
    assert found.shape == (4, math.ceil(num_samples / HOP))
    np.testing.assert_array_equal(found, nano_codec.encode_track([samples], window_s=1.0, context_s=0.2))


@pytest.mark.parametrize("num_samples", [16_000 + 1, 5 * 16_000 + 777])
@pytest.mark.parametrize("windows_at_once", [2, 3, 8])
def test_windows_of_one_batch_have_the_codes_they_have_alone(
    nano_codec: Codec, signal: Callable[[int], np.ndarray], num_samples: int, windows_at_once: int
) -> None:
    blocks = cut(signal(num_samples), [999, 16_000])
    alone = nano_codec.encode_track(blocks, window_s=1.0, context_s=0.2)
    found = nano_codec.encode_track(blocks, window_s=1.0, context_s=0.2, windows_at_once=windows_at_once)
    assert found.shape == alone.shape
    assert (found == alone).mean(1).min() >= 0.995  # room for near ties: other kernels sum in another order


def test_windows_tell_which_samples_their_codes_are_of(nano_codec: Codec, signal: Callable[[int], np.ndarray]) -> None:
    samples = signal(3 * 16_000 + 999)
    windows = list(nano_codec.encode_windows([samples], window_s=1.0, context_s=0.2, windows_at_once=2))
    kept = [window.samples[:, window.kept] for window in windows]
    np.testing.assert_array_equal(np.concatenate(kept, axis=1), samples)
    assert [window.kept_codes.shape for window in windows] == [(4, math.ceil(part.shape[1] / HOP)) for part in kept]
    codes = np.concatenate([window.kept_codes for window in windows], axis=1)
    np.testing.assert_array_equal(
        codes, nano_codec.encode_track([samples], window_s=1.0, context_s=0.2, windows_at_once=2)
    )


def test_a_batch_has_so_many_windows_of_one_length(
    nano_codec: Codec, signal: Callable[[int], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    encode = nano_codec.encode

    def measure(waveform: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(waveform.shape))
        return encode(waveform)

    monkeypatch.setattr(nano_codec, "encode", measure)
    nano_codec.encode_track([signal(8 * 16_000)], window_s=1.0, context_s=0.2, windows_at_once=4)
    # The first and the last window have context on one side only.
    assert shapes == [(1, 1, 19_200), (4, 1, 22_400), (2, 1, 22_400), (1, 1, 19_200)]


def test_threads_share_a_codec(nano_codec: Codec, signal: Callable[[int], np.ndarray]) -> None:
    tracks = [signal(16_000 + 500 * number) for number in range(6)]
    expected = [nano_codec.encode_track([track], window_s=1.0) for track in tracks]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda track: nano_codec.encode_track([track], window_s=1.0), tracks))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_track_without_samples_has_no_frames(nano_codec: Codec) -> None:
    assert nano_codec.encode_track([]).shape == (4, 0)


@pytest.mark.parametrize("seed", range(60))
def test_windows_cover_each_sample_once_with_whole_context_on_both_sides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keep, context, num_samples = (int(rng.integers(low, 41)) for low in (1, 0, 1))
    sizes = [int(size) for size in rng.integers(1, rng.integers(2, 60), 5)]
    samples = np.arange(num_samples, dtype=np.float32)[None]
    counted = 0
    for window, kept in _windows(cut(samples, sizes), keep=keep, context=context):
        first = int(window[0, 0])
        np.testing.assert_array_equal(window[0], np.arange(first, first + window.shape[1]))
        stop = window.shape[1] if kept.stop is None else kept.stop
        assert first + kept.start == counted  # joins the part before, without gap or overlap
        assert kept.start == min(context, counted)
        counted += stop - kept.start
        assert window.shape[1] - stop == context if counted < num_samples else stop == window.shape[1]
        assert window.shape[1] <= 2 * context + keep
    assert counted == num_samples


# ---- identity --------------------------------------------------------------------------------------------------------


def test_the_hash_is_the_same_whenever_the_same_weights_are_read(nano_folder: Path, nano_codec: Codec) -> None:
    assert open_base(str(nano_folder)).codec().spec.sha256 == nano_codec.spec.sha256


def test_the_hash_tells_values_names_shapes_and_dtypes_but_not_the_order() -> None:
    state = {"a": torch.arange(6.0), "b": torch.zeros(2, 3)}
    others = [
        {"a": torch.tensor([0.0, 1, 2, 3, 4, 5.0001]), "b": state["b"]},
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"], "b": torch.zeros(3, 2)},
        {"a": state["a"], "b": torch.zeros(2, 3, dtype=torch.int32)},
    ]
    hashes = {state_sha256(other) for other in [state, *others]}
    assert len(hashes) == 5
    assert state_sha256({"b": state["b"], "a": state["a"]}) == state_sha256(state)


def test_stereo_codes_are_those_of_left_and_right_in_turn(nano_folder: Path) -> None:
    mono, stereo = open_base(str(nano_folder)).codec(), open_base(str(nano_folder), channels=2).codec()
    waveform = 0.1 * torch.randn(3, 2, 4001, generator=torch.Generator().manual_seed(0))
    left, right = mono.encode(waveform[:, :1]), mono.encode(waveform[:, 1:])

    codes = stereo.encode(waveform)

    assert torch.equal(codes[:, 0::2], left)
    assert torch.equal(codes[:, 1::2], right)
    decoded = torch.cat([mono.decode(left), mono.decode(right)], dim=1)
    torch.testing.assert_close(stereo.decode(codes), decoded, rtol=0, atol=1e-6)  # batches sum in another order
