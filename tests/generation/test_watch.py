"""Pieces that collapse while they are made: seen at once, broken off where that was asked for; nobody else notices."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.codec import Codec
from musicgen_ft.generation import watch as watch_module
from musicgen_ft.generation.collapse import find_loops, measure
from musicgen_ft.generation.decode import Conditions, Engine, Piece, Windows, long_codes
from musicgen_ft.generation.decoder import Decoder
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import Request
from musicgen_ft.generation.sampling import Sampling
from musicgen_ft.generation.session import Mode, Sessions
from musicgen_ft.generation.watch import LOOK_FRAMES, PieceWatch
from musicgen_ft.model.conditioning import TextEncoder, TextStates
from musicgen_ft.model.lm import LanguageModel

MakeLM = Callable[..., LanguageModel]
MakeText = Callable[..., TextStates]
RigLoops = Callable[[Callable[[int], bool]], list[list[int]]]
RATE = 25
PERIOD = 5
"""Frames, of the fixture ``rig_loops``."""
ALL = Sampling(top_k=0)
LOST_AT = -(-(PERIOD + 2 * RATE) // LOOK_FRAMES) * LOOK_FRAMES
"""Frames of a piece that repeats from its start, when it is broken off: two seconds of repeats, then the next look."""


@pytest.fixture(params=["eager", "static"])
def engine(request: pytest.FixtureRequest, make_lm: MakeLM) -> Engine:
    mode: Mode = request.param
    decoder = Decoder(make_lm(text_padding="transformers"))
    return Engine(decoder, Sessions(decoder, mode))


class Heard(PieceWatch):
    """Keeps what it is shown, and does as it is told."""

    def __init__(self, *, gives_up_at: int | None = None) -> None:
        super().__init__(RATE)
        self.parts: list[Tensor] = []
        self._gives_up_at = gives_up_at

    def add(self, codes: Tensor) -> None:
        self.parts.append(codes)
        super().add(codes)
        self._is_lost |= self._gives_up_at is not None and self.num_seen >= self._gives_up_at


def watch_of(num_frames: int, codec: Codec, *, breaks_off: bool = True) -> PieceWatch:
    watch = PieceWatch(RATE, breaks_off=breaks_off)
    watch.begin(num_frames, codec)
    watch._silence = None  # the toy's codes are none of the codec's
    return watch


# ---- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"delays": (0, 3, 3, 7)}, *({"pattern": name, "delays": (0, 0, 0, 0)} for name in ("unroll", "coarse_first"))],
)
def test_a_watch_is_shown_whole_frames_in_their_order(
    make_lm: MakeLM, make_text: MakeText, changes: dict[str, Any]
) -> None:
    pieces = [
        Piece(num_frames=2 * LOOK_FRAMES + 9, seed=1),
        Piece(num_frames=LOOK_FRAMES + 7, seed=2, prompt=torch.randint(11, (4, 13))),
        Piece(num_frames=5, seed=3),
    ]
    watches = [Heard() for _ in pieces]
    engine = Engine(Decoder(make_lm(**changes)))
    text = make_text(5, 5, 5)
    found = engine.codes(Conditions(text), pieces, watches=watches)

    assert all(torch.equal(a, b) for a, b in zip(found, engine.codes(Conditions(text), pieces), strict=True))
    for watch, codes in zip(watches, found, strict=True):
        assert torch.equal(torch.cat([codes[:, :0], *watch.parts], dim=1), codes[:, : watch.num_seen])
    if not changes:
        assert [[part.shape[1] for part in watch.parts] for watch in watches] == [
            [LOOK_FRAMES, LOOK_FRAMES],
            [LOOK_FRAMES, 7],
            [5],
        ]


# ---- loops -----------------------------------------------------------------------------------------------------------


def test_a_piece_that_loops_ends_at_the_next_look(
    engine: Engine, make_text: MakeText, nano_codec: Codec, rig_loops: RigLoops
) -> None:
    rig_loops(lambda seed: seed == 7)
    T, steps = 10 * LOOK_FRAMES, list[tuple[int, int]]()
    watch, text = watch_of(T, nano_codec), make_text(5)
    (codes,) = engine.codes(
        Conditions(text),
        [Piece(num_frames=T, seed=7, sampling=ALL)],
        watches=[watch],
        progress=lambda done, of: steps.append((done, of)),
    )

    assert (watch.is_lost, watch.num_seen, watch.broken_off_s) == (True, LOST_AT, LOST_AT / RATE)
    assert watch.loops == find_loops(codes[:, :LOST_AT], RATE)
    assert watch.loops[0].period_s == PERIOD / RATE
    assert codes[:, :LOST_AT].min() >= 0
    assert steps[-1] == (LOST_AT + 3, T + 3)  # as many as the delay pattern wants for so many frames


def test_the_others_of_a_batch_go_on_with_the_bits_of_a_batch_in_which_nobody_loops(
    engine: Engine, make_text: MakeText, nano_codec: Codec, rig_loops: RigLoops
) -> None:
    text, longest = make_text(5, 3, 7), 5 * LOOK_FRAMES
    lengths = (8 * LOOK_FRAMES, longest, 3 * LOOK_FRAMES + 9)
    pieces = [
        Piece(num_frames=T, seed=seed, sampling=sampling)
        for T, seed, sampling in zip(lengths, (7, 8, 9), (ALL, ALL, Sampling(top_k=0, temperature=0.9)), strict=True)
    ]
    expected = engine.codes(Conditions(text), pieces)
    assert not any(find_loops(codes, RATE) for codes in expected)

    rig_loops(lambda seed: seed == 7)
    watches, steps = [watch_of(T, nano_codec) for T in lengths], list[int]()
    found = engine.codes(Conditions(text), pieces, watches=watches, progress=lambda done, of: steps.append(done))
    assert [watch.is_lost for watch in watches] == [True, False, False]
    assert watches[0].num_seen == LOST_AT
    assert all(torch.equal(found[row], expected[row]) for row in (1, 2))
    assert steps[-1] == longest + 3  # nobody waits for the first


def test_no_piece_is_broken_off_where_that_is_not_asked_for(
    engine: Engine, make_text: MakeText, nano_codec: Codec, rig_loops: RigLoops
) -> None:
    rig_loops(lambda seed: seed == 7)
    text, T = make_text(5, 3), 4 * LOOK_FRAMES
    pieces = [Piece(num_frames=T, seed=seed, sampling=ALL) for seed in (7, 8)]
    watches = [watch_of(T, nano_codec, breaks_off=False) for _ in pieces]
    found = engine.codes(Conditions(text), pieces, watches=watches)

    assert all(torch.equal(a, b) for a, b in zip(found, engine.codes(Conditions(text), pieces), strict=True))
    for watch, codes in zip(watches, found, strict=True):
        watch.add(codes[:, watch.num_seen :])
        assert (watch.is_lost, watch.broken_off_s, watch.num_seen) == (False, None, T)
        assert watch.loops == find_loops(codes, RATE)


@pytest.mark.parametrize("lost", [[True, True], [True, False], [False, True]])
def test_long_pieces_end_with_the_window_in_which_the_last_of_them_is_lost(
    make_lm: MakeLM, make_text: MakeText, lost: list[bool]
) -> None:
    engine, text, T = Engine(Decoder(make_lm())), make_text(5, 3), 6 * LOOK_FRAMES
    windows, ends = Windows(2 * LOOK_FRAMES + 20, LOOK_FRAMES + 20), 3 * LOOK_FRAMES + 9
    pieces = [Piece(num_frames=T, seed=seed) for seed in (7, 17)]
    begun: list[int] = []

    def conditions(start: int) -> Conditions:
        begun.append(start)
        return Conditions(text)

    whole = long_codes(engine, conditions, pieces, windows)
    num_windows = len(begun)
    begun.clear()
    watches = [Heard(gives_up_at=ends if is_lost else None) for is_lost in lost]
    found = long_codes(engine, conditions, pieces, windows, watches=watches)

    assert len(begun) < num_windows if all(lost) else len(begun) == num_windows
    for row, watch in enumerate(watches):
        assert torch.equal(torch.cat(watch.parts, dim=1), whole[row][:, : sum(p.shape[1] for p in watch.parts)])
        stop = watch.num_seen if lost[row] else T
        assert ends <= stop and (stop < T) == lost[row]
        assert torch.equal(found[row][:, :stop], whole[row][:, :stop])


# ---- silence ---------------------------------------------------------------------------------------------------------

QUIET = -61.0
LOUD = -59.0


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codec gives seconds a decibel above and below silence, as the first code of their frames says, 8 frames late.

    Of what it decoded the frames are kept.
    """
    frames: list[int] = []

    class Sound:
        def __init__(self, codec: Codec) -> None:
            self._hop, self._codes, self._given = codec.spec.hop_length, torch.zeros(1, 0), 0

        def decode(self, codes: Tensor, *, is_last: bool) -> Tensor:
            frames.append(codes.shape[2])
            self._codes = torch.cat([self._codes, codes[:, 0]], dim=1)
            start, self._given = self._given, max(0, self._codes.shape[1] - 8)
            return sound_of(self._codes[:, start : self._given], self._hop)

    monkeypatch.setattr(watch_module, "SoundStream", Sound)
    return frames


def sound_of(loud: Tensor, hop: int) -> Tensor:
    """Of frames [1, n]."""
    level = torch.where(loud > 0, LOUD, QUIET)
    signs = torch.tensor([1.0, -1.0]).repeat(hop // 2)
    return (10 ** (level / 20)).repeat_interleave(hop, dim=1) * signs.repeat(loud.shape[1])


def piece_of(codec: Codec, seconds: Sequence[int]) -> Tensor:
    """Codes [K, T] of loud and silent seconds, none of which comes twice."""
    T = 50 * len(seconds)
    codes = torch.arange(T).repeat(codec.spec.n_q, 1)
    codes[0] = torch.tensor(seconds).repeat_interleave(50)
    return codes


def test_a_piece_is_lost_when_its_verdict_is_certain_and_not_before(nano_codec: Codec, decoded: list[int]) -> None:
    assert nano_codec.spec.frame_rate == 50
    hop, rate = nano_codec.spec.hop_length, nano_codec.spec.sample_rate
    for seconds in itertools.product((0, 1), repeat=7):
        codes = piece_of(nano_codec, seconds)
        watch = PieceWatch(50, breaks_off=True)
        watch.begin(codes.shape[1], nano_codec)
        for part in codes.split(50, dim=1):
            watch.add(part)
        silent = [n for n, loud in enumerate(seconds) if not loud]
        if len(silent) < 4 or silent[3] > 4:  # the fourth of seven; its end is heard a look later
            assert (watch.is_lost, watch.broken_off_s) == (False, None), seconds
        else:
            assert watch.broken_off_s == silent[3] + 2, seconds
            played = sound_of(codes[:1, : watch.num_seen], hop).numpy()
            assert measure(sound_of(codes[:1], hop).numpy(), rate).is_found
            assert measure(played, rate).silent_share > 0.5


def test_what_sounds_for_half_of_its_length_is_decoded_no_further(nano_codec: Codec, decoded: list[int]) -> None:
    codes = piece_of(nano_codec, [1] * 10)
    watch = PieceWatch(50, breaks_off=True)
    watch.begin(codes.shape[1], nano_codec)
    for part in codes.split(50, dim=1):
        watch.add(part)
    assert sum(decoded) == 6 * 50  # five seconds, and what they wait for


def test_nothing_is_decoded_where_nothing_is_broken_off(nano_codec: Codec, decoded: list[int]) -> None:
    watch = PieceWatch(50)
    watch.begin(500, nano_codec)
    watch.add(piece_of(nano_codec, [0] * 9))
    assert not watch.is_lost
    assert decoded == []


# ---- the generator ---------------------------------------------------------------------------------------------------


def test_a_generator_gives_what_was_played_of_a_lost_piece(
    make_lm: MakeLM, nano_codec: Codec, text_encoder: TextEncoder, rig_loops: RigLoops
) -> None:
    lm = make_lm(text_dim=text_encoder.dim, card=256)
    generator = Generator(lm, nano_codec, text_encoder)
    requests = [
        Request(prompt=word, duration_s=seconds, seed=seed, sampling=ALL)
        for word, seconds, seed in (("a waltz", 8.0, 7), ("techno", 4.5, 8), ("rain", 0.5, 9))
    ]
    expected = generator.codes(requests)
    rig_loops(lambda seed: seed == 7)
    for breaks_off in (True, False):
        watches = [PieceWatch(50, breaks_off=breaks_off) for _ in requests]
        codes = generator.codes(requests, watches=watches)
        assert [row.shape[1] for row in codes] == [150 if breaks_off else 400, 225, 25]
        assert [watch.broken_off_s for watch in watches] == [3.0 if breaks_off else None, None, None]
        assert [watch.loops for watch in watches] == [find_loops(row, 50) for row in codes]
        assert all(torch.equal(codes[row], expected[row]) for row in (1, 2))
    sound = generator.play(requests, watches=[PieceWatch(50, breaks_off=True) for _ in requests])
    assert [waveform.shape[1] / generator.sample_rate for waveform in sound] == [3.0, 4.5, 0.5]


def test_a_generator_hears_silence(make_lm: MakeLM, nano_codec: Codec, text_encoder: TextEncoder) -> None:
    """Nano's codec, a hundred thousand times softer."""

    model: Any = copy.deepcopy(nano_codec.model)
    last = model.decoder.layers[-1].conv
    with torch.no_grad():
        for parameter in last.parameters():
            parameter *= 1e-5
    codec = Codec(model, id="soft", channels=1)
    generator = Generator(make_lm(text_dim=text_encoder.dim, card=256), codec, text_encoder)
    request = Request(prompt="a waltz", duration_s=6.0, seed=3, sampling=ALL)
    watch = PieceWatch(50, breaks_off=True)
    (codes,) = generator.codes([request], watches=[watch])  # four silent seconds of six, and the lag
    assert (watch.loops, watch.broken_off_s, codes.shape[1]) == (
        (),
        5.0,
        250,
    )
