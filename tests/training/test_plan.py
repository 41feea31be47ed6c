"""The choice: the first that fits, as much of it at once as fits, and nothing that was fixed is changed."""

import dataclasses
from typing import Any

import pytest

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.model.lm import LMConfig
from musicgen_ft.training.plan import (
    ADAPTER_LR,
    Candidate,
    Device,
    Job,
    Plan,
    plan,
    shortage,
    step_flops,
    summary,
    table,
)
from musicgen_ft.training.simulate import DeviceType

LM = LMConfig(
    dim=48, num_heads=4, num_layers=3, ffn_dim=160, n_q=4, card=50, delays=(0, 1, 2, 3), text_dim=20
)  # fmt: skip
OPEN: dict[str, Any] = {"method": "auto", "recompute": "auto", "micro_batch_size": "auto"}


def job(*, devices: int = 1, **changes: Any) -> Job:
    settings: dict[str, Any] = {"batch_size": 6, "segment_s": 0.4, "lora_rank": 2, **OPEN, **changes}
    return Job(lm_config=LM, config=FinetuneConfig(**settings), text_encoder_bytes=1000, frame_rate=50, devices=devices)


def device(budget: float, kind: DeviceType = "cpu") -> Device:
    """With so many bytes for tensors."""
    empty = Device(type=kind, memory=0, is_here=False)
    share = Device(type=kind, memory=10**12, is_here=False).budget - empty.budget
    made = Device(type=kind, memory=round((budget - empty.budget) / share * 10**12), is_here=False)
    assert made.budget == pytest.approx(budget, abs=2)
    return made


def needs(method: str, recompute: str, micro_batch: int, kind: DeviceType = "cpu") -> int:
    fixed = job(method=method, recompute=recompute, micro_batch_size=micro_batch)
    return chosen(plan(fixed, device(1e12, kind))).memory.total


def chosen(found: Plan) -> Candidate:
    assert found.chosen is not None
    return found.chosen


def words(found: Plan) -> tuple[str, str, int]:
    config = chosen(found).config
    assert isinstance(config.micro_batch_size, int)
    return config.method, config.recompute, config.micro_batch_size


def test_with_room_for_everything_nothing_is_given_up() -> None:
    found = plan(job(), device(1e12))
    assert words(found) == ("full", "none", 6)
    assert (chosen(found).accumulation, found.rejected, found.further) == (1, (), ())
    assert not chosen(found).config.is_open


@pytest.mark.parametrize(
    ("fits", "expected"),
    [
        (("full", "none", 3), ("full", "none", 3)),
        (("full", "none", 1), ("full", "none", 1)),
        (("full", "selective", 1), ("full", "selective", 1)),
        (("full", "full", 1), ("full", "full", 1)),
    ],
)
def test_the_first_that_fits_with_as_many_clips_as_fit(
    fits: tuple[str, str, int], expected: tuple[str, str, int]
) -> None:
    found = plan(job(), device(needs(*fits) + 100))
    assert words(found) == expected
    assert chosen(found).accumulation == 6 // expected[2]
    assert all(candidate.memory.total > found.device.budget for candidate in found.rejected)
    # The next larger divisor would not have fitted.
    larger = {1: 2, 3: 6}[expected[2]]
    assert needs(expected[0], expected[1], larger) > found.device.budget


def test_adapters_come_after_all_weights_and_learn_faster() -> None:
    found = plan(job(), device(needs("lora", "none", 2) + 100))
    assert words(found)[0] == "lora"
    assert chosen(found).config.lr == ADAPTER_LR
    assert {candidate.config.method for candidate in found.rejected} == {"full"}
    assert chosen(plan(job(lr=2e-5), found.device)).config.lr == 2e-5
    assert chosen(plan(job(method="lora"), found.device)).config.lr == FinetuneConfig.lr


def test_four_bits_are_the_last_resort_and_for_cuda_alone() -> None:
    little = needs("lora", "full", 1, "cuda") - 1000
    assert words(plan(job(), device(little, "cuda")))[0] == "qlora"
    on_cpu = plan(job(), device(1))
    assert on_cpu.chosen is None
    assert {candidate.config.method for candidate in on_cpu.rejected} == {"full", "lora"}


def test_what_is_fixed_stays() -> None:
    little = device(needs("full", "full", 2) + 100)
    assert words(plan(job(recompute="full", micro_batch_size=2), little)) == ("full", "full", 2)
    assert words(plan(job(method="lora", recompute="selective"), device(1e12))) == ("lora", "selective", 6)
    assert words(plan(job(micro_batch_size=None), device(1e12))) == ("full", "none", 6)
    assert plan(job(method="full"), device(needs("lora", "none", 1))).chosen is None


def test_where_nothing_fits_it_says_what_would() -> None:
    found = plan(job(), device(1))
    text = shortage(found, job())
    assert "the least, method lora with recompute full and 1 clips of 0.4 s at once, needs a device of" in text


def test_devices_share_the_batch_and_hold_the_gradients_twice() -> None:
    one, two = (plan(job(devices=n, micro_batch_size=1), device(1e12)) for n in (1, 2))
    assert (chosen(one).accumulation, chosen(two).accumulation) == (6, 3)
    assert chosen(two).memory.gradients == 2 * chosen(one).memory.gradients


def test_a_step_is_its_clips_and_what_is_computed_again() -> None:
    fixed: dict[str, Any] = {"method": "full", "recompute": "none", "micro_batch_size": 1}
    two, four = (job(batch_size=n, **fixed) for n in (2, 4))
    assert step_flops(four, four.config) == 2 * step_flops(two, two.config) > 0
    again = dataclasses.replace(four.config, recompute="full")
    assert step_flops(four, again) > step_flops(four, four.config)
    for method in ("lora", "qlora"):
        assert step_flops(four, dataclasses.replace(four.config, method=method)) < step_flops(four, four.config)


def test_the_table_adds_up_and_the_summary_says_it_in_a_line() -> None:
    found = plan(job(), device(needs("full", "selective", 1) + 100), further=True)
    head, *rows = table(found).splitlines()
    assert head.split()[-3:] == ["T5", "process", "total"]
    assert [row.split()[:3] for row in rows] == [
        ["no", "full", "none"],
        ["yes", "full", "selective"],
        ["(yes)", "lora", "none"],
    ]
    for row in rows:
        *parts, total = (float(number) for number in row.split()[6:])
        assert sum(parts) == pytest.approx(total, abs=0.04)
    line = summary(chosen(found), found.device)
    assert line.startswith("method full, recompute selective, 1 clips at once, 6 times a step, lr 1e-05: ")
