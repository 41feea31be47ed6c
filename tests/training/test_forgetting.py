"""What the base has played, and the loss on it while a corpus is learned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from musicgen_ft.chroma import DROPPED, ChromaSpec
from musicgen_ft.codec import Codec
from musicgen_ft.generation.generator import Generator
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.training.forgetting import CAPTIONS, FORGETTING_FILE, ForgettingProbe, sample_base
from musicgen_ft.training.loss import codebook_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers

Run = Any
"""tests/training/conftest.py's."""
CPU = torch.device("cpu")


@pytest.fixture
def base(make_lm: Callable[..., LanguageModel], nano_codec: Codec, text_encoder: TextEncoder) -> Generator:
    """The weights that every run of these tests begins with."""
    return Generator(make_lm(text_dim=text_encoder.dim), nano_codec, text_encoder)


@pytest.fixture
def start_probed(start_run: Callable[..., Run], base: Generator) -> Callable[..., Run]:
    """As start_run; a new run's folder holds five clips of 13 frames."""

    def start(name: str = "run", *, resume_step: int | None = None, **changes: Any) -> Run:
        run = start_run(name, resume_step=resume_step, **changes)
        if resume_step is None:
            sample_base(base, run.folder.path / FORGETTING_FILE, num_clips=5, num_frames=13)
        return run

    return start


def column(run: Run, name: str) -> dict[int, float]:
    return {int(row["step"]): float(row[name]) for row in run.rows() if row[name]}


def test_the_base_plays_each_caption_from_a_seed_of_its_own(
    base: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The usual share of a toy's eleven entries would be one.
    monkeypatch.setattr("musicgen_ft.generation.sampling.usual_top_k", lambda card: card)
    for name in ("a", "b"):
        sample_base(base, tmp_path / name, num_clips=14, num_frames=7)
    codes = load_file(tmp_path / "a")["codes"]
    assert (codes.shape, codes.dtype) == ((14, 4, 7), torch.int32)
    assert len({tuple(clip.flatten().tolist()) for clip in codes}) == 14  # those of one caption differ, too
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    (tmp_path / FORGETTING_FILE).write_bytes((tmp_path / "a").read_bytes())
    probe = ForgettingProbe.of_run(tmp_path, chroma=None, device=CPU)
    assert probe is not None
    assert probe.batch.descriptions == (*CAPTIONS, *CAPTIONS[:2])
    assert torch.equal(probe.batch.codes, codes.long())
    assert probe.batch.mask.all()


def test_the_captions_are_of_different_genres_and_one_line_each() -> None:
    assert len(set(CAPTIONS)) == len(CAPTIONS) >= 12
    assert not any("\n" in caption for caption in CAPTIONS)


def test_a_base_that_is_stopped_while_it_plays_leaves_no_file(base: Generator, tmp_path: Path) -> None:
    def stop(done: int, of: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_base(base, tmp_path / FORGETTING_FILE, num_clips=2, num_frames=9, progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert ForgettingProbe.of_run(tmp_path, chroma=None, device=CPU) is None


def test_a_melody_model_hears_no_melody_with_them() -> None:
    spec = ChromaSpec(sample_rate=16_000, n_fft=1024, hop_length=256)
    probe = ForgettingProbe(torch.zeros(3, 4, 7, dtype=torch.int64), ("a", "b", "c"), chroma=spec)
    assert probe.batch.chroma is not None
    assert probe.batch.chroma.shape == (3, spec.num_frames(1))
    assert (probe.batch.chroma == DROPPED).all()


def test_learning_a_corpus_raises_the_loss_on_what_the_base_played(
    start_probed: Callable[..., Run], make_shards: Callable[..., Path]
) -> None:
    of = make_shards(train=(12,), valid=(12,))
    run = start_probed(of=of, lr=1e-2, cfg_dropout=0.0, max_steps=40, valid_every_steps=20, save_every_steps=40).fit()
    ce, delta = column(run, "valid/forgetting_ce"), column(run, "valid/forgetting_delta")
    assert list(ce) == list(delta) == list(column(run, "valid/ce")) == [0, 20, 40]  # in the validation's own row
    assert delta[0] == 0.0
    assert 0.1 < delta[20] < delta[40]
    assert delta[40] == pytest.approx(ce[40] - ce[0], abs=1e-4)
    assert run.module.standing() == (
        f"validation loss {run.module.latest['valid/ce']:.3f} (base {column(run, 'valid/ce')[0]:.3f}), "
        f"forgetting {delta[40]:+.3f}"
    )


@pytest.mark.parametrize("ema_decay", [0.0, 0.8])
def test_it_is_the_loss_of_the_weights_that_are_validated(start_probed: Callable[..., Run], ema_decay: float) -> None:
    run = start_probed(ema_decay=ema_decay, max_steps=4, valid_every_steps=4, dropout=0.3).fit()
    module = run.module
    batch = module.forgetting.batch
    lm = module.lm.eval()
    with torch.no_grad(), module.averaged():
        logits, mask = lm.predict(batch.codes, module._text_encoder.encode(batch.descriptions))
    expected = codebook_cross_entropy(logits, batch.codes, batch.mask[:, None] & mask).ce.item()
    assert column(run, "valid/forgetting_ce")[4] == pytest.approx(expected, rel=1e-5)


def test_the_base_plays_what_it_finds_likely(start_probed: Callable[..., Run]) -> None:
    run = start_probed(max_steps=2, valid_every_steps=2).fit()
    batch = run.module.forgetting.batch
    shuffled = batch._replace(codes=(batch.codes + 5) % 11)
    run.module.lm.load_state_dict(start_probed("again").module.lm.state_dict())  # the base's weights
    with torch.no_grad():
        assert run.module._loss_of(batch) < run.module._loss_of(shuffled)


def test_a_resumed_run_measures_the_same_clips_against_the_same_base(
    start_probed: Callable[..., Run], kill_at: Callable[..., Any]
) -> None:
    changes = {"max_steps": 8, "save_every_steps": 3}
    expected = start_probed("unbroken", **changes).fit()
    killed = start_probed(**changes)
    path = killed.folder.path / FORGETTING_FILE
    with kill_at(killed, step=5):
        killed.fit()
    before = path.stat().st_mtime_ns
    resumed = start_probed(resume_step=3, lm_seed=99, **changes)
    resumed.fit(resume=True)
    assert path.stat().st_mtime_ns == before
    assert resumed.rows() == expected.rows()
    ours, theirs = (run.folder.read_checkpoint("last")["musicgen_ft"] for run in (resumed, expected))
    assert ours == theirs
    assert ours["forgetting_ce"] - ours["base_forgetting_ce"] == expected.module.latest["valid/forgetting_delta"]


def test_a_run_without_the_file_has_no_probe(start_run: Callable[..., Run]) -> None:
    run = start_run(max_steps=2).fit()
    assert run.module.forgetting is None
    assert column(run, "valid/forgetting_ce") == {}
    assert "forgetting" not in run.module.standing()
    assert run.folder.read_checkpoint("last")["musicgen_ft"]["base_forgetting_ce"] is None
