"""Claims about the page of an evaluation: all figures are on it, nothing runs in it, and it stays small."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicgen_ft.evaluation.divergence import PairwiseKL
from musicgen_ft.evaluation.figures import Distance, Evaluation, ModelFigures, PlayedPrompt, SoundFigures
from musicgen_ft.evaluation.likelihood import Likelihood
from musicgen_ft.evaluation.memorisation import SharedRun
from musicgen_ft.evaluation.playing import Throughput
from musicgen_ft.generation.collapse import Collapse, Loop
from musicgen_ft.report import evaluation_report
from musicgen_ft.report.evaluation_report import key_figures, loss_curves, summary_lines, write_evaluation

EVIL = "\"'><script>alert(1)</script>"
RATE = 8000
FINE = Collapse(duration_s=2.0, loops=(), silent_share=0.0, ends_silent_s=0.0, is_silent=False)
LOOP = Loop(start_s=0.5, stop_s=2.0, period_s=0.5, repetitions=3)
LOOPING = Collapse(duration_s=2.0, loops=(LOOP,), silent_share=0.0, ends_silent_s=0.0, is_silent=False)


def shared(num_frames: int, track: str = "track-7") -> SharedRun:
    return SharedRun(num_frames=num_frames, distinct_frames=9, start=10, track=track, track_start=250)


def sound(*, value: float = 1.5, **changes: Any) -> SoundFigures:
    values: dict[str, Any] = {
        "num_clips": 2,
        "distances": {"EnCodec": Distance(value=value, num_embeddings=20, num_reference=40, dim=128)},
        "collapses": (FINE, LOOPING),
        "shared": (shared(3), shared(75, "track-9")),
        "shared_first": (shared(5), shared(90)),
    }
    return SoundFigures(**{**values, **changes})


def model(place: str, *, ce: float, **changes: Any) -> ModelFigures:
    loss = Likelihood(ce_per_codebook=(ce - 1, ce + 1), num_clips=7, num_frames=3500)
    speed = Throughput(frames=1000, seconds=5.0, batch_size=4, device="cpu", frame_rate=50)
    values: dict[str, Any] = {"likelihood": {"valid": loss}, "forgetting_ce": ce + 0.5, "sound": sound(value=ce)}
    return ModelFigures(place=place, throughput=speed, **{**values, **changes})


@pytest.fixture
def make() -> Callable[..., Evaluation]:
    """A function that makes figures of two models and two prompts; it takes changes."""

    def evaluation(**changes: Any) -> Evaluation:
        values: dict[str, Any] = {
            "models": {"base": model("nano", ce=6.0), "model": model("run", ce=5.0)},
            "yardsticks": {
                "held_out": sound(distances={}),
                "train": SoundFigures(num_clips=2, distances=sound(value=0.5).distances),
            },
            "prompts": [PlayedPrompt(text=f"slow waltz {n}", seed=n, track=f"valid-{n}") for n in range(2)],
            "split": "valid",
            "frame_rate": 50,
            "facts": {"config": {"pieces": 2, "clap": None}, "toolkit_version": "0.1.0"},
        }
        return Evaluation(**{**values, **changes})

    return evaluation


@pytest.fixture
def page(tmp_path: Path, read_page: Any) -> Callable[..., Any]:
    """A function that writes a page and reads it."""

    def write(evaluation: Evaluation, *, title: str = "run", **words: Any) -> Any:
        names = ["held_out", *evaluation.models]
        noise = np.random.default_rng(0).normal(0, 0.1, (1, 2 * RATE)).astype(np.float32)
        sounds = {name: [noise for _ in evaluation.prompts] for name in names}
        path = tmp_path / "index.html"
        write_evaluation(path, evaluation, title=title, sounds=sounds, sample_rate=RATE, **words)
        return read_page(path.read_text(encoding="utf-8"))

    return write


def test_every_figure_is_on_the_page_beside_the_bases(page: Any, make: Callable[..., Evaluation]) -> None:
    found = page(make(), curves={"Loss": {"training": [(0, 6.0), (10, 5.0)]}})
    for text in (
        "Loss, held out 5.000 base 6.000",
        "codebook 2 7.000 6.000 −1.000",
        "Longest copy 1.5 s",
        "Forgetting −1.000",
        "Silent or looping 1 of 2",
        "200 4.00 4 cpu",  # frames per s, times real time
        "repeats 0.5 s exactly, 3 times from 0.5 s on",
        "1.50 s from 0.20 s on are the codes of track-9",
        "20 embeddings against 40, 128 wide",
        "Fewer embeddings than they are wide (128)",
    ):
        assert text in found.text
    assert [str(link["href"])[1:] for link in found.all("a")[1:]] == [
        *("listen", "loss", "training", "distance", "memory", "faults", "speed", "made")
    ]
    assert len(found.all("audio")) == 2 * 3


def test_what_was_not_measured_is_left_out(page: Any, make: Callable[..., Evaluation]) -> None:
    alone = model("run", ce=5.0, forgetting_ce=None, sound=sound(distances={}))
    found = page(make(models={"model": alone}, yardsticks={"held_out": sound(distances={})}), max_prompts=0)
    assert found.all("audio") == []
    assert "Forgetting" not in found.text
    assert "classifier" not in found.text.lower()
    assert "CLAP" not in found.text
    assert "this model" in found.text
    assert "tuned" not in found.text.replace("fine-tuned", "")


def test_a_classifiers_shares_and_divergence_are_shown(page: Any, make: Callable[..., Evaluation]) -> None:
    shares, kl = {"waltz": 0.75, "techno": 0.25}, PairwiseKL(from_reference=0.25, from_generated=0.5)
    heard = model("run", ce=5.0, sound=sound(class_shares=shares, kl=kl, clap_score=0.31, chroma_similarity=0.62))
    found = page(make(models={"model": heard}, yardsticks={"held_out": sound(class_shares=shares)}))
    assert "waltz 75% 75%" in found.text
    assert "0.250 0.500 0.750" in found.text
    assert "Fit to the caption, CLAP" in found.text
    assert "0.31" in found.text
    assert "0.62" in found.text


def test_captions_and_keys_are_text_wherever_they_are_shown(page: Any, make: Callable[..., Evaluation]) -> None:
    prompts = [PlayedPrompt(text=EVIL, seed=0, track=EVIL), PlayedPrompt(text=None, seed=1, track="b")]
    models = {"base": model(EVIL, ce=6.0), "model": model(EVIL, ce=5.0, sound=sound(shared=(shared(60, EVIL),) * 2))}
    found = page(make(prompts=prompts, models=models, facts={"config": {EVIL: EVIL}}), title=EVIL)
    assert len(found.scripts) == 1
    assert "alert" not in found.scripts[0]
    assert found.text.count(EVIL) > 5
    assert "No caption: played without a condition" in found.text


def test_prompts_to_listen_to_are_spread_evenly_and_fit_the_page(
    page: Any, make: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [PlayedPrompt(text=f"slow waltz {n}", seed=n, track=str(n)) for n in range(9)]
    many = sound(num_clips=9, collapses=(FINE,) * 9, shared=(shared(3),) * 9, shared_first=(shared(3),) * 9)
    models = {"model": model("run", ce=5.0, sound=many)}
    evaluation = make(prompts=prompts, models=models, yardsticks={"held_out": many})
    found = page(evaluation, max_prompts=3)
    assert len(found.all("audio")) == 3 * 2
    assert "Here are 3 of 9" in found.text
    assert [text for text in found.texts if text in {prompt.text for prompt in prompts}][:3] == [
        *("slow waltz 0", "slow waltz 3", "slow waltz 6")
    ]

    monkeypatch.setattr(evaluation_report, "MEDIA_BYTES", 1)
    assert len(page(evaluation, max_prompts=3).all("audio")) == 2  # one at least


def test_losses_of_trained_tracks_are_not_called_held_out(page: Any, make: Callable[..., Evaluation]) -> None:
    loss = {"train": Likelihood(ce_per_codebook=(4.0, 5.0), num_clips=7, num_frames=3500)}
    evaluation = make(split="train", models={"model": model("run", ce=5.0, likelihood=loss)})
    found = page(evaluation)
    assert "training tracks: nothing was held out" in found.text
    assert "Loss, training tracks 4.500" in found.text
    assert "Held-out track" not in found.text.replace("Held-out tracks", "")


def test_the_terminal_gets_the_key_figures(make: Callable[..., Evaluation]) -> None:
    lines = summary_lines(make())
    assert lines[0] == "Loss, held out: 5.000 (base 6.000)"
    assert "Distance, EnCodec: 5 (base 6)" in lines
    assert len(lines) == len(key_figures(make()))


@pytest.mark.parametrize(
    ("share", "num_clips", "told"),
    [
        (0.75, 24, "75% (± 9, base 25%)"),  # 20 of 28 with two hits and two misses: sqrt(0.714 x 0.286 / 28) = 0.085
        (1.0, 6, "100% (± 13, base 25%)"),  # all of a few clips are no certainty: 8 of 10
        (0.0, 96, "0% (± 1, base 25%)"),
    ],
)
def test_a_share_of_the_pieces_is_told_with_how_much_so_few_can_tell(
    make: Callable[..., Evaluation], share: float, num_clips: int, told: str
) -> None:
    base, tuned = (
        model(place, ce=5.0, sound=sound(num_clips=num_clips, heard_as_asked=heard))
        for place, heard in (("nano", 0.25), ("run", share))
    )
    assert f"Heard as the genre asked for: {told}" in summary_lines(make(models={"base": base, "model": tuned}))


def test_curves_are_those_of_the_log(tmp_path: Path) -> None:
    assert loss_curves(tmp_path) == {}
    rows = ["step,train/ce,valid/ce,valid/forgetting_ce", "0,,6.5,", "1,6.0,,", "2,5.5,5.8,"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    assert loss_curves(tmp_path) == {"Loss": {"training": [(1, 6.0), (2, 5.5)], "held out": [(0, 6.5), (2, 5.8)]}}


def test_metrics_have_flat_names(make: Callable[..., Evaluation]) -> None:
    found = make().metrics()
    assert found["model/valid/ce"] == 5.0
    assert found["base/valid/ce_q2"] == 7.0
    assert found["train/frechet_encodec"] == 0.5
    assert found["model/longest_shared_s"] == 1.5
    assert found["model/looping_share"] == 0.5
    assert found["model/realtime_factor"] == 4.0
