"""The fine-tuning module in real, tiny runs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.errors import UserError
from musicgen_ft.shards.batch import Batch, collate
from musicgen_ft.training import throughput
from musicgen_ft.training.loss import codebook_cross_entropy
from musicgen_ft.training.metrics import metric_names
from musicgen_ft.training.module import FinetuneModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers

Run = Any
"""tests/training/conftest.py's."""


def crops(run: Run, *positions: int) -> Batch:
    return collate([run.data.train_crops[position] for position in positions])


def weights(module: FinetuneModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.lm.state_dict().items()}


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


# ---- learning --------------------------------------------------------------------------------------------------------


def test_one_batch_is_learned_by_heart(start_run: Callable[..., Run], make_shards: Callable[..., Path]) -> None:
    of = make_shards(train=(12,), valid=(12,))  # one clip, again and again
    steps = {"max_steps": 120, "valid_every_steps": 120, "save_every_steps": 120}
    run = start_run(of=of, lr=1e-2, cfg_dropout=0.0, weight_decay=0.0, batch_size=2, micro_batch_size=2, **steps).fit()
    losses = [float(row["train/ce"]) for row in run.rows() if row["train/ce"]]
    assert losses[0] > 2.0  # log 11 is 2.4
    assert losses[-1] < 0.1  # measured 0.003
    assert run.module.latest["valid/ce"] > 2.0  # other codes cannot be known


@pytest.mark.parametrize("train", [(31, 44, 27), (31, 3, 5, 12, 44, 9)], ids=["alike", "of all lengths"])
def test_accumulated_micro_batches_make_the_step_of_one_large_batch(
    start_run: Callable[..., Run], make_shards: Callable[..., Path], train: tuple[int, ...]
) -> None:
    of = make_shards(train=train, valid=(26,))
    one, *others = (start_run(f"by {n}", of=of, micro_batch_size=n, max_steps=3).fit() for n in (4, 2, 1))
    names = ("train/ce", "train/ce_q3", "train/grad_norm", "train/lr", "valid/ce")
    for other in others:
        for name, value in weights(other.module).items():
            # The same gradients summed in another order, through 3 steps of Adam; measured 1.2e-7.
            torch.testing.assert_close(value, weights(one.module)[name], rtol=0, atol=1e-5)
        found, expected = ([float(row[name] or 0) for row in run.rows() for name in names] for run in (other, one))
        assert found == pytest.approx(expected, abs=2.5e-5)  # written with five decimals: one is 1e-5


def test_padding_that_is_cut_off_changes_nothing(
    start_run: Callable[..., Run], make_shards: Callable[..., Path]
) -> None:
    of = make_shards(train=(31, 3, 5, 9, 44, 9), valid=(26, 4))
    cut, padded = (start_run(name, of=of, micro_batch_size=1, max_steps=4) for name in ("cut", "padded"))
    padded.data._margin_frames = None
    lengths = {batch.codes.shape[2] for batch in cut.data.train_dataloader()}
    assert lengths >= {3 + 3, 5 + 3, 12}
    assert {batch.codes.shape[2] for batch in padded.data.train_dataloader()} == {12}
    for name, value in weights(cut.fit().module).items():
        torch.testing.assert_close(value, weights(padded.fit().module)[name], rtol=0, atol=1e-6)


def test_the_rate_follows_the_schedule_and_the_gradient_is_clipped(start_run: Callable[..., Run]) -> None:
    run = start_run(max_steps=6, warmup_steps=2, lr=1e-3, max_grad_norm=1e-4, weight_decay=0.0)
    norms: list[float] = []
    clip = run.module.configure_gradient_clipping

    def spy(*args: Any, **kwargs: Any) -> None:
        clip(*args, **kwargs)
        gradients = [parameter.grad for parameter in run.module.lm.parameters() if parameter.grad is not None]
        norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    run.module.configure_gradient_clipping = spy
    rows = [row for row in run.fit().rows() if row["train/lr"]]
    assert [float(row["train/lr"]) for row in rows] == pytest.approx(
        [5e-4, 1e-3, 1e-3, 8.53553e-4, 5e-4, 1.46447e-4], rel=1e-4
    )
    assert norms == pytest.approx([1e-4] * 6, rel=1e-3)
    assert all(float(row["train/grad_norm"]) > 0.1 for row in rows)  # as it was before clipping


def test_the_same_seed_gives_the_same_run_and_another_seed_another(start_run: Callable[..., Run]) -> None:
    changes = {"dropout": 0.1, "max_steps": 3}
    first, second, other = (
        start_run(name, seed=seed, **changes).fit() for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert equal(weights(first.module), weights(second.module))
    assert first.rows() == second.rows()
    assert not equal(weights(first.module), weights(other.module))


def test_dropout_draws_anew_for_every_micro_batch_of_every_step(
    start_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seeds = start_run(dropout=0.1, max_steps=4), list[int]()
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    run.trainer.fit(run.module, run.data)
    assert len(seeds) == len(set(seeds)) == 4 * 2


@pytest.mark.parametrize("text_padding", ["audiocraft", "transformers"])
def test_the_loss_of_a_step_is_that_of_masked_predictions(start_run: Callable[..., Run], text_padding: str) -> None:
    run = start_run(cfg_dropout=0.0)
    run.module.lm.config = dataclasses.replace(run.module.lm.config, text_padding=text_padding)
    batch = crops(run, *range(8))
    assert not batch.mask.all()  # the short track is among them
    found = run.module.loss(batch).ce
    text = run.module._text_encoder.encode(batch.descriptions)
    logits, pattern_mask = run.module.lm.predict(batch.codes, text)
    assert torch.equal(found, codebook_cross_entropy(logits, batch.codes, batch.mask[:, None] & pattern_mask).ce)


def test_a_clip_of_padding_alone_adds_no_nan(start_run: Callable[..., Run]) -> None:
    run = start_run()
    batch = crops(run, 0, 1)
    nothing = batch._replace(codes=torch.full_like(batch.codes, 11), mask=torch.zeros_like(batch.mask))
    loss = run.module.loss(nothing).ce
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in run.module.lm.parameters())


# ---- classifier-free guidance ----------------------------------------------------------------------------------------


def test_dropping_the_text_changes_the_loss(start_run: Callable[..., Run]) -> None:
    run = start_run(cfg_dropout=0.0)
    batch = crops(run, 0, 1)
    null = batch._replace(descriptions=(None, None))
    assert abs(run.module.loss(batch).ce - run.module.loss(null).ce) > 1e-3


@pytest.mark.parametrize(("scope", "per_step"), [("sample", {0, 1, 2, 3, 4}), ("step", {0, 4})])
def test_texts_are_dropped_at_the_configs_rate_in_its_scope(
    start_run: Callable[..., Run], scope: str, per_step: set[int]
) -> None:
    run = start_run(cfg_dropout=0.3, cfg_dropout_scope=scope)
    dropped = [run.data.train_crops[position].description is None for position in range(1200)]
    # 1200 draws, or 300 of four at once: the rate's deviation is 0.013 or 0.026; four of them.
    assert sum(dropped) / 1200 == pytest.approx(0.3, abs=0.053 if scope == "sample" else 0.106)
    assert {sum(dropped[step : step + 4]) for step in range(0, 1200, 4)} == per_step


# ---- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema_decay", [0.0, 0.8])
def test_validation_takes_the_averaged_weights_and_gives_the_raw_ones_back(
    start_run: Callable[..., Run], ema_decay: float
) -> None:
    run = start_run(max_steps=4, valid_every_steps=4, ema_decay=ema_decay).fit()
    module, raw = run.module, weights(run.module)
    expected = raw if module.ema is None else {**raw, **{k: v.clone() for k, v in module.ema.weights.items()}}
    assert equal(expected, raw) == (module.ema is None)
    seen: list[dict[str, Tensor]] = []
    step = module.validation_step

    def spy(*args: Any) -> None:
        seen.append(weights(module))
        step(*args)

    module.validation_step = spy
    run.trainer.validate(module, run.data, verbose=False)
    assert seen
    assert all(equal(found, expected) for found in seen)
    assert equal(weights(module), raw)


def test_the_validation_loss_is_over_all_frames_of_all_held_out_tracks(start_run: Callable[..., Run]) -> None:
    run = start_run(max_steps=2, valid_every_steps=2, ema_decay=0.0).fit()
    batch = collate([run.data.valid_crops[i] for i in range(len(run.data.valid_crops))])
    assert not batch.mask.all()
    lm = run.module.lm.eval()
    with torch.no_grad():
        logits, mask = lm.predict(batch.codes, run.module._text_encoder.encode(batch.descriptions))
    expected = codebook_cross_entropy(logits, batch.codes, batch.mask[:, None] & mask)
    row = run.rows()[-1]
    assert float(row["valid/ce"]) == pytest.approx(expected.ce.item(), rel=1e-5)
    assert float(row["valid/ppl"]) == pytest.approx(expected.ce.exp().item(), rel=1e-4)
    assert [float(row[f"valid/ce_q{k}"]) for k in range(1, 5)] == pytest.approx(
        expected.ce_per_codebook.tolist(), rel=1e-5
    )


def test_dropout_does_not_act_in_validation(start_run: Callable[..., Run]) -> None:
    run = start_run(dropout=0.5)
    losses = []
    for _ in range(2):
        run.trainer.validate(run.module, run.data, verbose=False)
        losses.append(run.module.latest["valid/ce"])
    assert losses[0] == losses[1]


# ---- what it tells and keeps -----------------------------------------------------------------------------------------


def test_every_metric_of_the_style_page_is_written(start_run: Callable[..., Run]) -> None:
    run = start_run(max_steps=4, valid_every_steps=2).fit()
    written = {name for row in run.rows() for name, value in row.items() if value} - {"step"}
    of_clock_or_probe = {*throughput.NAMES, "valid/forgetting_ce", "valid/forgetting_delta"}
    assert written | of_clock_or_probe | {"train/skipped"} == set(metric_names(4))
    assert [row["step"] for row in run.rows()] == ["0", "1", "2", "2", "3", "4", "4"]


def test_the_average_takes_in_every_nth_step(start_run: Callable[..., Run]) -> None:
    run = start_run(max_steps=7, ema_every_steps=3, ema_decay=0.8)
    update, steps = run.module.ema.update, list[int]()

    def spy(module: Any) -> None:
        update(module)
        steps.append(run.trainer.global_step)

    run.module.ema.update = spy
    run.fit()
    assert steps == [2, 5]  # Lightning counts the step afterwards
    assert run.module.ema.count == pytest.approx(1 + 0.8)


def test_log_every_steps_thins_the_rows_of_training(start_run: Callable[..., Run]) -> None:
    run = start_run(max_steps=6, log_every_steps=3, valid_every_steps=6).fit()
    assert [row["step"] for row in run.rows() if row["train/ce"]] == ["3", "6"]


def test_only_the_language_model_is_trained_and_saved(start_run: Callable[..., Run]) -> None:
    run = start_run()
    assert {name.split(".")[0] for name in run.module.state_dict()} == {"lm"}
    assert {id(p) for p in run.module.parameters()} == {id(p) for p in run.module.lm.parameters()}


def test_training_leaves_t5_as_it_was(start_run: Callable[..., Run], text_encoder: Any) -> None:
    before = {name: value.clone() for name, value in text_encoder.encoder.state_dict().items()}
    start_run(max_steps=2).fit()
    assert equal(dict(text_encoder.encoder.state_dict()), before)
    assert not text_encoder.encoder.training


def spoil(run: Run, step: int, bad: float) -> None:
    """Makes what the heads of one training step read not finite."""
    states = run.module.lm.states

    def spoiled(codes: Tensor, text: Any, melody: Any) -> Any:
        found = states(codes, text, melody)
        is_due = run.module.training and run.trainer.global_step == step - 1
        return found._replace(hidden=found.hidden * bad) if is_due else found

    run.module.lm.states = spoiled


def test_a_step_that_is_not_finite_is_skipped_where_that_is_asked_for(
    start_run: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    run = start_run(on_nonfinite="skip", max_steps=6)
    spoil(run, 3, float("nan"))

    run.fit()

    assert run.trainer.global_step == 6
    assert all(value.isfinite().all() for value in run.module.lm.state_dict().values())
    rows = run.rows()
    assert [row["step"] for row in rows if row["train/ce"]] == ["1", "2", "4", "5", "6"]
    assert [(row["step"], row["train/skipped"]) for row in rows if row["train/skipped"]] == [("3", "1")]
    assert "step 3: the loss is nan" in caplog.text and "track_00" in caplog.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("step", "saved"), [(2, 0), (3, 2), (4, 2), (5, 4)])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(
    start_run: Callable[..., Run], bad: float, step: int, saved: int
) -> None:
    run = start_run(save_every_steps=2, max_steps=6)
    spoil(run, step, bad)
    with pytest.raises(UserError, match=rf"step {step}: the loss is nan.*the last save is {saved}") as caught:
        run.fit()
    assert "this process's tracks were track_00" in str(caught.value)
    assert "\n" not in str(caught.value)
    if saved:
        checkpoint = run.folder.read_checkpoint("last")
        assert checkpoint["global_step"] == saved
        assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
