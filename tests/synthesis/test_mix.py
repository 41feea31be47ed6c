"""Loudness, limiting and effects."""

import numpy as np
import pytest
import torch
import torchaudio

from musicgen_ft.synthesis.mix import CEILING_DB, LOUDNESS_LUFS, duck, echo, loudness_lufs, master, reverb

SAMPLE_RATE = 16_000


def noise_bursts(seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Two channels of 6 s: noise, a second of it louder by 26 dB."""
    rng = np.random.default_rng(seed)
    wave = 0.01 * rng.standard_normal((2, 6 * SAMPLE_RATE), dtype=np.float32)
    wave[:, :SAMPLE_RATE] *= 20
    return wave


def test_loudness_agrees_with_torchaudio() -> None:
    wave = noise_bursts()  # torchaudio's filters clip at 1: its peak must stay well below
    expected = float(torchaudio.functional.loudness(torch.from_numpy(wave), SAMPLE_RATE))
    assert loudness_lufs(wave, SAMPLE_RATE) == pytest.approx(expected, abs=1)  # its blocks overlap, ours do not


def test_silence_has_a_loudness() -> None:
    assert loudness_lufs(np.zeros((2, SAMPLE_RATE), np.float32), SAMPLE_RATE) == -70.0


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_a_master_keeps_below_the_ceiling_and_has_no_dc(scale: float) -> None:
    mastered = master(np.float32(scale) * noise_bursts() + np.float32(0.1), SAMPLE_RATE)
    assert np.abs(mastered).max() <= 10 ** (CEILING_DB / 20) + 1e-6
    assert np.abs(mastered.mean(axis=1)).max() < 1e-3


def test_a_master_of_even_noise_is_in_the_loudness_window() -> None:
    mastered = master(noise_bursts()[:, SAMPLE_RATE:], SAMPLE_RATE)
    assert LOUDNESS_LUFS[0] - 0.5 < loudness_lufs(mastered, SAMPLE_RATE) < LOUDNESS_LUFS[1] + 0.5


def test_silence_is_mastered_to_silence() -> None:
    assert np.abs(master(np.zeros((2, 1000), np.float32), SAMPLE_RATE)).max() == 0


def test_an_echo_comes_back_on_the_other_side() -> None:
    bus = np.zeros((2, 1000), np.float32)
    bus[0, 0] = 1
    echoed = echo(bus, delay_s=0.1, feedback=0.5, sample_rate=1000)
    assert [echoed[0, 0], echoed[1, 100], echoed[0, 200]] == [1, 0.5, 0.25]
    assert np.count_nonzero(echoed[:, :250]) == 3


def test_a_reverb_tail_falls_by_sixty_decibels_in_its_time() -> None:
    send = np.zeros(2 * SAMPLE_RATE, np.float32)
    send[0] = 1
    room = reverb(send, 1.0, SAMPLE_RATE, np.random.default_rng(0))
    early, late = (np.mean(room[:, start : start + 1600] ** 2) for start in (400, 400 + 8000))
    assert 10 * np.log10(early / late) == pytest.approx(30, abs=5)


def test_a_kick_presses_the_others_down_and_lets_go() -> None:
    gain = duck(SAMPLE_RATE, SAMPLE_RATE, [0.25], depth_db=6)
    assert gain[: SAMPLE_RATE // 4].min() == 1
    assert gain.min() == pytest.approx(10 ** (-6 / 20), abs=0.05)
    assert gain[-1] == 1
