"""Samples on the way of real, tiny runs: when they are made, of which weights, and that training does not notice."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.audio import read
from musicgen_ft.codec import CodecSpec
from musicgen_ft.errors import UserError
from musicgen_ft.generation.decoder import Decoder
from musicgen_ft.generation.options import requests_of
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel, usual_top_k
from musicgen_ft.training import listening as listening_module
from musicgen_ft.training.forgetting import FORGETTING_FILE, ForgettingProbe
from musicgen_ft.training.listening import Listening, as_generator, let_base_play, sample_prompts

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers

Run = Any
"""tests/training/conftest.py's."""
CODEC = CodecSpec(id="tiny", sha256="c0dec" * 8, sample_rate=320, frame_rate=10, channels=1, n_q=4, card=11)
PROMPTS = ("calm piano", "driving techno with bass", "")


class ToyCodec:
    """32 samples for each frame, whose level tells the codes."""

    spec = CODEC

    def __init__(self) -> None:
        self.decoded: list[Tensor] = []

    def to(self, device: object) -> "ToyCodec":
        return self

    def decode(self, codes: Tensor) -> Tensor:
        self.decoded.append(codes)
        return (codes.float().mean(1, keepdim=True) / 22).repeat_interleave(32, dim=2)


@pytest.fixture
def codec() -> Any:
    return ToyCodec()


@pytest.fixture
def start_heard(start_run: Callable[..., Run], codec: Any, text_encoder: TextEncoder) -> Callable[..., Run]:
    """As start_run, every second step played; a new run lets the base play, as the recipe does."""

    def start(name: str = "run", *, resume_step: int | None = None, **changes: Any) -> Run:
        changes = {"sample_every_steps": 2, "sample_s": 1.5, "sample_prompts": PROMPTS, **changes}
        run = start_run(name, resume_step=resume_step, **changes)
        folder, config = run.folder.path / "samples", run.module.config
        run.listening = Listening(folder, config, sample_prompts(config, run.data), codec, text_encoder, run.stop)
        saves = next(i for i, found in enumerate(run.trainer.callbacks) if type(found).__name__ == "SaveCheckpoints")
        run.trainer.callbacks.insert(saves, run.listening)
        if resume_step is None:
            let_base_play(run.trainer, run.module, codec, text_encoder, run.listening, has_valid=True)
        return run

    return start


def weights(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.module.lm.state_dict().items()}


def folders(run: Run) -> list[str]:
    return sorted(path.name for path in (run.folder.path / "samples").iterdir())


def test_the_base_and_every_second_step_are_heard(start_heard: Callable[..., Run]) -> None:
    run = start_heard(max_steps=5).fit()
    assert folders(run) == ["base", "step-000002", "step-000004"]
    stems = ["000_calm-piano", "001_driving-techno-with-bass", "002_unconditional"]
    for name, step, kind in (("base", 0, "base"), ("step-000002", 2, "averaged")):
        folder = run.folder.path / "samples" / name
        assert sorted(path.name for path in folder.iterdir()) == [f"{s}{x}" for s in stems for x in (".json", ".wav")]
        for number, stem in enumerate(stems):
            assert read(folder / f"{stem}.wav", sample_rate=CODEC.sample_rate, channels=1).shape == (1, 15 * 32)
            how = json.loads((folder / f"{stem}.json").read_text())
            assert (how["prompt"], how["seed"], how["step"]) == (PROMPTS[number], number, step)
            assert (how["weights"], how["sample_rate"], how["duration_s"]) == (kind, 320, 1.5)
            assert (how["top_k"], how["temperature"], how["cfg_coef"]) == (usual_top_k(CODEC.card), 1.0, 3.0)


@pytest.mark.parametrize("changes", [{}, {"method": "lora"}])
def test_training_does_not_notice_that_it_is_heard(
    start_run: Callable[..., Run], start_heard: Callable[..., Run], changes: dict[str, Any]
) -> None:
    changes = {"dropout": 0.1, "cfg_dropout": 0.3, "max_steps": 5, **changes}
    heard, unheard = start_heard("heard", **changes).fit(), start_run("unheard", **changes).fit()
    assert all(torch.equal(value, weights(unheard)[name]) for name, value in weights(heard).items())
    without = [name for name in unheard.rows()[0] if not name.startswith("valid/forgetting")]
    assert [[row[name] for name in without] for row in heard.rows()] == [
        [row[name] for name in without] for row in unheard.rows()
    ]


@pytest.mark.parametrize("ema_decay", [0.0, 0.8])
def test_the_weights_that_are_heard_are_those_that_are_validated(
    start_heard: Callable[..., Run], codec: Any, text_encoder: TextEncoder, ema_decay: float
) -> None:
    run = start_heard(max_steps=4, sample_every_steps=4, ema_decay=ema_decay, lr=0.05).fit()
    of_base, of_run = codec.decoded[-2:]
    assert not torch.equal(of_base, of_run)
    options = run.listening._options
    with run.module.averaged(), as_generator(run.module.lm, codec, text_encoder, torch.device("cpu")) as generator:
        expected = torch.stack(generator.codes(requests_of(PROMPTS, options, seeds=range(3))))
    assert torch.equal(of_run, expected)
    how = json.loads((run.folder.path / "samples" / "step-000004" / "000_calm-piano.json").read_text())
    assert how["weights"] == ("raw" if ema_decay == 0 else "averaged")


def test_the_model_is_afterwards_as_it_was(
    make_lm: Callable[..., LanguageModel], codec: Any, text_encoder: TextEncoder
) -> None:
    lm = make_lm(text_dim=text_encoder.dim, text_padding="audiocraft").train()
    lm.embeddings.requires_grad_(False)
    trained = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    with as_generator(lm, codec, text_encoder, torch.device("cpu")) as generator:
        assert (lm.training, generator.lm.config.text_padding) == (False, "transformers")
    assert lm.training
    assert all(module.training for module in lm.modules())
    assert lm.config.text_padding == "audiocraft"
    assert {name for name, parameter in lm.named_parameters() if parameter.requires_grad} == trained


def test_a_killed_run_is_heard_at_the_same_steps_and_the_base_once(
    start_heard: Callable[..., Run], kill_at: Callable[..., Any], bytes_under: Callable[[Path], dict[str, bytes]]
) -> None:
    changes = {"max_steps": 6, "save_every_steps": 3}
    expected = start_heard("unbroken", **changes).fit()
    killed = start_heard(**changes)
    with kill_at(killed, step=5):
        killed.fit()
    base = killed.folder.path / "samples" / "base"
    before = base.stat().st_mtime_ns
    (killed.folder.path / "samples" / ".step-000004.tmp-99").mkdir()  # what a kill leaves
    resumed = start_heard(resume_step=3, **changes).fit(resume=True)
    assert base.stat().st_mtime_ns == before
    assert bytes_under(resumed.folder.path / "samples") == bytes_under(expected.folder.path / "samples")


@pytest.fixture
def bytes_under() -> Callable[[Path], dict[str, bytes]]:
    def tell(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return tell


def test_samples_that_a_kill_has_prevented_are_made_up_for(
    start_heard: Callable[..., Run], kill_at: Callable[..., Any], bytes_under: Callable[[Path], dict[str, bytes]]
) -> None:
    changes = {"max_steps": 6, "save_every_steps": 4}
    expected = start_heard("unbroken", **changes).fit()
    killed = start_heard(**changes)
    with kill_at(killed, step=5):
        killed.fit()
    shutil.rmtree(killed.folder.path / "samples" / "step-000004")
    resumed = start_heard(resume_step=4, **changes).fit(resume=True)
    assert bytes_under(resumed.folder.path / "samples") == bytes_under(expected.folder.path / "samples")


def test_a_run_that_is_told_to_stop_plays_no_further(
    start_heard: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_heard(max_steps=4)
    step, calls = Decoder.prefill, 0

    def told(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if run.trainer.global_step == 2:
            calls += 1
            run.stop.signum = 15 if calls == 3 else 0
        return step(*args, **kwargs)

    monkeypatch.setattr(Decoder, "prefill", told)
    with pytest.raises(SystemExit) as end:
        run.fit()
    assert (end.value.code, calls) == (75, 3)
    assert folders(run) == ["base"]
    assert run.folder.saved().step == 2
    resumed = start_heard(resume_step=2, max_steps=4).fit(resume=True)
    assert folders(resumed) == ["base", "step-000002", "step-000004"]


def test_a_disk_that_takes_no_samples_stops_the_run(
    start_heard: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_heard()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(listening_module, "write_wav", full)
    with pytest.raises(OSError, match="No space"):
        run.fit()
    assert folders(run) == ["base"]


# ---- prompts ---------------------------------------------------------------------------------------------------------


def test_without_prompts_it_plays_captions_of_held_out_tracks(
    start_run: Callable[..., Run], make_shards: Callable[..., Path]
) -> None:
    run = start_run(sample_every_steps=2)
    assert sample_prompts(run.module.config, run.data) == ("calm piano number 100", "calm piano number 101")
    alone = start_run("alone", of=make_shards(train=(31, 5, 44), valid=()), sample_every_steps=2)
    found = sample_prompts(alone.module.config, alone.data)
    assert set(found) == {f"calm piano number {number}" for number in range(3)}
    assert found == sample_prompts(alone.module.config, alone.data)


def test_samples_shorter_than_a_frame_are_refused(start_run: Callable[..., Run]) -> None:
    run = start_run(sample_every_steps=2, sample_s=0.05)
    with pytest.raises(UserError, match=r"sample_s 0\.05: found less than a frame of 0\.1 s"):
        sample_prompts(run.module.config, run.data)


# ---- the probe of forgetting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "has_valid", "frames"),
    [
        ({}, True, 12),  # no longer than a clip of training
        ({"forgetting_s": 0.7}, True, 7),
        ({"forgetting_clips": 0}, True, None),
        ({"text_encoder": "other"}, True, None),
        ({}, False, None),
    ],
)
def test_the_base_plays_for_the_probe_where_one_can_be_measured(
    start_run: Callable[..., Run],
    codec: Any,
    text_encoder: TextEncoder,
    changes: dict[str, Any],
    has_valid: bool,
    frames: int | None,
) -> None:
    run = start_run()
    run.module.config = dataclasses.replace(run.module.config, **changes)
    let_base_play(run.trainer, run.module, codec, text_encoder, None, has_valid=has_valid)
    path = run.folder.path / FORGETTING_FILE
    assert path.is_file() == (frames is not None)
    if frames is not None:
        probe = ForgettingProbe.of_run(run.folder.path, chroma=None, device=torch.device("cpu"))
        assert probe is not None
        assert probe.batch.codes.shape == (8, 4, frames)
        made = path.stat().st_mtime_ns
        let_base_play(run.trainer, run.module, codec, text_encoder, None, has_valid=has_valid)
        assert path.stat().st_mtime_ns == made  # never made again
