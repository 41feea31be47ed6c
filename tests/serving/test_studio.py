"""What the page does, without the page."""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_ft.audio import normalize_loudness, write_wav
from musicgen_ft.checkpoint.base import Base
from musicgen_ft.errors import UserError
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import Request
from musicgen_ft.generation.sampling import Sampling
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.serving.studio import Piece, Side, Studio, Wish, read_sound


@pytest.fixture
def studio(nano_folder: Path) -> Studio:
    return Studio([str(nano_folder)], device="cpu", max_duration_s=3.0)


def played(studio: Studio, wish: Wish, **side: object) -> Piece:
    side.setdefault("generator", studio.generators[0])
    *growing, last = studio.play(Side(**side), wish)  # type: ignore[arg-type]
    assert last.is_done
    assert not any(piece.is_done for piece in growing)
    return last


# ---- playing ---------------------------------------------------------------------------------------------------------


def test_a_wish_sounds_as_the_generator_plays_it(studio: Studio, nano_folder: Path) -> None:
    wish = Wish(prompt="a waltz", negative_prompt="drums", duration_s=0.7, seed=5, cfg_coef=2.0, top_k=9)

    piece = played(studio, wish)

    (expected,) = Generator.open(str(nano_folder), device="cpu").play(
        [
            Request(
                prompt="a waltz",
                negative_prompt="drums",
                duration_s=0.7,
                seed=5,
                cfg_coef=2.0,
                sampling=Sampling(top_k=9),
            )
        ]
    )
    torch.testing.assert_close(piece.waveform, normalize_loudness(expected, 16_000), atol=1e-4, rtol=1e-4)
    assert piece.sample_rate == 16_000
    assert piece.how["prompt"] == "a waltz"
    assert piece.how["seed"] == 5
    assert piece.how["generator"] == str(nano_folder)


def test_a_piece_grows_and_can_be_left(studio: Studio) -> None:
    pieces = studio.play(Side(generator=studio.generators[0]), Wish(duration_s=3.0))
    first = next(pieces)
    assert 0 < first.played_s < 3.0
    del pieces

    assert played(studio, Wish(duration_s=0.2)).played_s == pytest.approx(0.2)  # its turn was given back


def test_an_empty_prompt_is_said_aloud(studio: Studio) -> None:
    assert "no prompt: played without a condition" in played(studio, Wish(prompt="  ", duration_s=0.2)).notes
    assert not any("no prompt" in note for note in played(studio, Wish(prompt="x", duration_s=0.2)).notes)


def test_a_piece_goes_on_from_a_clip_of_any_rate(studio: Studio, tune: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Request] = []
    stream = Generator.stream

    def recorded(generator: Generator, request: Request) -> Iterator[torch.Tensor]:
        requests.append(request)
        return stream(generator, request)

    monkeypatch.setattr(Generator, "stream", recorded)

    assert played(studio, Wish(duration_s=1.0, clip=tune)).waveform.shape == (1, 16_000)

    (prompt,) = [request.audio_prompt for request in requests]
    assert prompt is not None
    expected = torch.sin(torch.arange(9_600) * 0.05 * 44_100 / 16_000) * 0.3  # the same tone at the model's rate
    torch.testing.assert_close(prompt[0, 200:-200], expected[200:-200], atol=0.01, rtol=0)


def test_a_melody_changes_what_a_melody_model_plays(melody_folder: Path, tune: Path) -> None:
    studio = Studio([str(melody_folder)], device="cpu")
    assert studio.facts(str(melody_folder)).takes_melody

    without, with_melody = (played(studio, Wish(duration_s=0.5, melody=melody)) for melody in (None, tune))

    assert not torch.equal(without.waveform, with_melody.waveform)
    assert with_melody.how["melody"] == "tune.wav"


def test_pieces_wait_for_each_other(studio: Studio) -> None:
    pieces = studio.play(Side(generator=studio.generators[0]), Wish(duration_s=1.0))
    next(pieces)
    other = threading.Thread(target=lambda: done.append(played(studio, Wish(duration_s=0.2))))
    done: list[Piece] = []
    other.start()
    other.join(0.3)
    assert done == []  # the first one is not at its end

    list(pieces)
    other.join(30)
    assert len(done) == 1


def test_only_so_many_models_stay_in_memory(nano_folder: Path, melody_folder: Path) -> None:
    nano, melodious = str(nano_folder), str(melody_folder)
    studio = Studio([nano, melodious], device="cpu", max_models=1)
    assert not studio.loaded

    for name in (nano, nano, melodious):
        played(studio, Wish(duration_s=0.1), generator=name)
        assert studio.loaded == (name,)


# ---- adapters --------------------------------------------------------------------------------------------------------


class Louder:
    """A mixer whose only adapter scales what the heads give."""

    def __init__(self, lm: LanguageModel, base: Base, folders: Mapping[str, Path]) -> None:
        self.lm, self.blends = lm, list[dict[str, float]]()
        self.pristine = [parameter.clone() for parameter in lm.heads.parameters()]
        opened.append(self)

    def blend(self, strengths: Mapping[str, float]) -> None:
        self.blends.append(dict(strengths))
        for parameter, pristine in zip(self.lm.heads.parameters(), self.pristine, strict=True):
            parameter.copy_(pristine * (1 + 4 * strengths.get("lofi", 0)))


opened: list[Louder] = []


def test_base_and_tuned_share_one_model(nano_folder: Path, melody_folder: Path) -> None:
    opened.clear()
    nano = str(nano_folder)
    studio = Studio(
        [nano, str(melody_folder)], adapters={"lofi": Path("lofi")}, open_mixer=Louder, device="cpu", max_models=1
    )
    assert studio.adapters_of(nano) == ("lofi",)
    assert studio.adapters_of(str(melody_folder)) == ()
    wish = Wish(prompt="a waltz", duration_s=0.5, seed=3)

    base, tuned, again = (played(studio, wish, strengths={"lofi": strength}) for strength in (0.0, 1.0, 0.0))

    assert torch.equal(base.waveform, again.waveform)
    assert not torch.equal(base.waveform, tuned.waveform)
    assert len(opened) == 1
    assert opened[0].blends == [{}, {"lofi": 1.0}, {}]
    assert (base.how["adapter"], tuned.how["adapter"]) == ({}, {"lofi": 1.0})


def test_an_adapter_lies_over_the_first_generator_only(nano_folder: Path, melody_folder: Path) -> None:
    studio = Studio([str(nano_folder), str(melody_folder)], adapters={"lofi": Path("lofi")}, open_mixer=Louder)
    for generator, strengths in ((str(melody_folder), {"lofi": 1.0}), (str(nano_folder), {"waltz": 1.0})):
        with pytest.raises(UserError, match=r"adapter (lofi|waltz): found none of that name over"):
            next(studio.play(Side(generator=generator, strengths=strengths), Wish()))
    with pytest.raises(UserError, match=r"strength of lofi: found 7, expected -2 to 2\."):
        studio.check(Side(generator=str(nano_folder), strengths={"lofi": 7.0}), Wish())


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duration_s": 3.5}, r"duration: found 3\.5 s, expected 0\.1 to 3 s\."),
        ({"duration_s": 0}, r"duration: found 0 s"),
        ({"duration_s": float("nan")}, r"duration: found nan s"),
        ({"duration_s": None}, r"duration: found nothing"),
        ({"seed": -1}, r"seed: found -1, expected 0 to 4294967295\."),
        ({"cfg_coef": -1}, r"guidance: found -1"),
        ({"temperature": 9}, r"temperature: found 9"),
        ({"top_k": -1}, r"top-k: found -1"),
        ({"top_p": 1.5}, r"top-p: found 1\.5"),
        ({"prompt": "la " * 400}, r"prompt: found 1200 characters, expected at most 1000"),
        ({"negative_prompt": "la " * 400}, r"negative prompt: found 1200 characters"),
        ({"melody": Path("tune.wav")}, r"melody: .* takes none\. Remove the melody"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_opened(studio: Studio, changes: dict[str, Any], message: str) -> None:
    wish = Wish(**{"duration_s": 1.0, **changes})
    with pytest.raises(UserError, match=message):
        next(studio.play(Side(generator=studio.generators[0]), wish))
    assert studio.loaded == ()


def test_a_model_that_is_not_there(studio: Studio) -> None:
    with pytest.raises(UserError, match="model 'other': found no such one, there are"):
        next(studio.play(Side(generator="other"), Wish()))


def test_a_clip_as_long_as_the_piece_is_refused(studio: Studio, tune: Path) -> None:
    with pytest.raises(UserError, match=r"clip: it has 0\.6 s, expected less than the 0\.5 s of the piece"):
        list(studio.play(Side(generator=studio.generators[0]), Wish(duration_s=0.5, clip=tune)))


def test_a_file_that_is_no_sound_or_silent_is_refused(tmp_path: Path, studio: Studio) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFFxxxxWAVEjunk" * 50)
    write_wav(tmp_path / "silent.wav", torch.zeros(1, 8_000), 8_000)
    for name, message in (
        ("broken", r"clip: broken\.wav gives no sound \("),
        ("silent", r"clip: silent\.wav is silent"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            list(studio.play(Side(generator=studio.generators[0]), Wish(clip=tmp_path / f"{name}.wav", duration_s=1)))
        assert str(tmp_path) not in str(caught.value)  # the page is no place for the server's folders


def test_a_file_without_end_is_refused_early(tmp_path: Path) -> None:
    write_wav(tmp_path / "long.wav", torch.ones(1, 601 * 100) * 0.5, 100)
    with pytest.raises(UserError, match=r"melody: long\.wav is longer than 600 s"):
        read_sound("melody", tmp_path / "long.wav", sample_rate=100, channels=1)


def test_a_generator_is_given_once(nano_folder: Path) -> None:
    with pytest.raises(UserError, match="is given twice"):
        Studio([str(nano_folder), str(nano_folder)])
