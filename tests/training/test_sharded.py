import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.errors import UserError
from musicgen_ft.training import sharded
from musicgen_ft.training.checkpoints import AtomicCheckpointIO, damage, newest_whole, prune, remove_cut, saved_steps
from musicgen_ft.training.run import exported_weights
from musicgen_ft.training.sharded import Rows, rows_of
from musicgen_ft.weights import LazyTensors


def checkpoint(seed: int = 0, step: int = 3) -> dict[str, Any]:
    """What one process would save: tensors of 7 and 2 rows, and one of no columns."""
    generator = torch.Generator().manual_seed(seed)
    weights = {"lm.a.weight": torch.randn(7, 3, generator=generator), "lm.b": torch.randn(2, generator=generator)}
    weights["lm.c"] = torch.randn(5, 0)
    moments = {
        number: {"step": torch.tensor(3.0), "exp_avg": value + 1} for number, value in enumerate(weights.values())
    }
    return {
        "state_dict": weights,
        "global_step": step,
        "ema": {"decay": 0.9, "count": 2.5, "weights": {name[3:]: value * 2 for name, value in weights.items()}},
        "optimizer_states": [
            {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0, 1, 2]}]}
        ],
        "callbacks": {"SaveCheckpoints": {"best_ce": float("inf")}},
        "musicgen_ft": {"valid_ce": None, "base_ce": 4.0},
    }


def write(folder: Path, world: int, whole: dict[str, Any]) -> Path:
    """The folder that so many ranks write, one after the other."""
    folder.mkdir(parents=True)
    hashes: dict[str, str] = {}
    for rank in range(world):
        hashes |= sharded.write_rank(folder, sharded.cut_rows(whole, rank, world), rank, world)
    sharded.write_manifest(folder, world, hashes)
    return folder


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_equal(found[name], value)
    elif isinstance(expected, list | tuple) and not isinstance(expected, Rows):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, Rows):
        assert found.shape == expected.shape
        assert_equal(found.local, expected.local)
    elif isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("num_rows", [0, 1, 2, 5, 7, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 9])
def test_rows_are_shared_out_as_fsdp_does(num_rows: int, world: int) -> None:
    chunks = [list(chunk) for chunk in torch.arange(num_rows).chunk(world)] + [[]] * world
    for rank in range(world):
        assert list(range(*rows_of(num_rows, rank, world))) == chunks[rank]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_what_ranks_have_written_is_read_whole(tmp_path: Path, world: int) -> None:
    folder = write(tmp_path / "step-000003.ckpt", world, checkpoint())
    assert damage(folder) is None
    assert_equal(sharded.read(folder), checkpoint())
    assert_equal(AtomicCheckpointIO().load_checkpoint(folder), checkpoint())


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (2, 3), (3, 2), (1, 4), (8, 3)])
def test_another_number_of_ranks_reads_its_own_rows(tmp_path: Path, before: int, after: int) -> None:
    folder = write(tmp_path / "step", before, checkpoint())
    for rank in range(after):
        assert_equal(sharded.read_rows(folder, rank, after), sharded.cut_rows(checkpoint(), rank, after))


def test_a_rank_writes_only_its_rows_and_the_first_one_all_else(tmp_path: Path) -> None:
    folder = write(tmp_path / "step", 2, checkpoint())
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "meta.pt", "rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors"
    }  # fmt: skip
    meta = sharded.read_meta(folder)
    assert meta["state_dict"]["lm.a.weight"].is_meta
    assert meta["state_dict"]["lm.a.weight"].shape == (7, 3)
    assert meta["optimizer_states"][0]["state"][1]["step"] == 3
    assert meta["callbacks"] == checkpoint()["callbacks"]


def test_weights_are_put_together_when_asked_for_and_the_optimizer_is_not_read(tmp_path: Path) -> None:
    folder, whole = write(tmp_path / "step", 2, checkpoint()), checkpoint()
    weights = sharded.read_weights(folder)
    assert "optimizer_states" not in weights
    assert isinstance(weights["state_dict"], LazyTensors)
    for kind, expected in (("raw", whole["state_dict"]), ("ema", whole["ema"]["weights"])):
        exported = exported_weights(weights, kind)
        assert isinstance(exported.state, LazyTensors)
        assert_equal(dict(exported.state), {name.removeprefix("lm."): value for name, value in expected.items()})


# ---- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


RANK_1 = "rank-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("hurt", "reason"),
    [
        (lambda folder: flip(folder / RANK_1), f"wrong checksum of {RANK_1}"),
        (lambda folder: flip(folder / "meta.pt"), "wrong checksum of meta.pt"),
        (lambda folder: (folder / RANK_1).unlink(), f"{RANK_1} is not there"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is not there"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is not what it was"),
        (lambda folder: (folder / "manifest.json").write_text('{"world": 3}'), "manifest.json is not what it was"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is not what it was"),
        (shutil.rmtree, None),
    ],
)
def test_damage_is_told_and_passed_over(tmp_path: Path, hurt: Callable[[Path], object], reason: str | None) -> None:
    before = write(tmp_path / "step-000003.ckpt", 2, checkpoint())
    newest = write(tmp_path / "step-000006.ckpt", 2, checkpoint())
    assert newest_whole(tmp_path) == newest
    hurt(newest)
    if reason is not None:
        assert damage(newest) == reason
    assert newest_whole(tmp_path) == before


def test_a_manifest_that_lies_about_its_ranks_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "step", 2, checkpoint())
    other = write(tmp_path / "other", 2, {**checkpoint(), "state_dict": {"lm.a.weight": torch.zeros(8, 3)}})
    shutil.copy(other / RANK_1, folder / RANK_1)
    with pytest.raises(UserError, match=r"lm.a.weight otherwise than its meta.pt says"):
        sharded.read(folder)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    folder = write(tmp_path / "step", 1, checkpoint())
    torch.save({"state_dict": {}, "global_step": 1, "evil": Path("x")}, folder / "meta.pt")
    for read in (sharded.read, sharded.read_weights, lambda path: sharded.read_rows(path, 0, 2)):
        with pytest.raises(UserError, match="pickled objects"):
            read(folder)


def test_a_disk_that_gives_other_bytes_back_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(path: Path) -> None:
        if path.suffix == ".safetensors":
            flip(path)

    monkeypatch.setattr(sharded, "forget", damaged)
    with pytest.raises(OSError, match="other bytes"):
        write(tmp_path / "step", 2, checkpoint())


# ---- what lies at a checkpoint's place -------------------------------------------------------------------------------


def test_a_file_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "best.ckpt", 2, checkpoint())
    AtomicCheckpointIO().save_checkpoint(checkpoint(seed=1), path)
    assert path.is_file()
    assert [left.name for left in tmp_path.iterdir()] == ["best.ckpt"]
    assert_equal(AtomicCheckpointIO().load_checkpoint(path), checkpoint(seed=1))


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "best.ckpt", 2, checkpoint())
    sharded.set_aside(path)
    assert not path.exists()
    remove_cut(tmp_path)
    assert_equal(sharded.read(path), checkpoint())

    sharded.set_aside(path)
    write(path, 2, checkpoint(seed=1))  # killed before the old one was removed
    remove_cut(tmp_path)
    assert [left.name for left in tmp_path.iterdir()] == ["best.ckpt"]
    assert_equal(sharded.read(path), checkpoint(seed=1))


def test_folders_and_files_are_pruned_alike_and_cut_ones_removed(tmp_path: Path) -> None:
    for step in (2, 6):
        write(tmp_path / f"step-{step:06d}.ckpt", 2, checkpoint(step=step))
    AtomicCheckpointIO().save_checkpoint(checkpoint(step=4), tmp_path / "step-000004.ckpt")
    (tmp_path / ".step-000008.ckpt.tmp-abc").mkdir()
    (tmp_path / ".step-000008.ckpt.tmp-abc" / RANK_1).write_text("cut")
    assert list(saved_steps(tmp_path)) == [2, 4, 6]
    prune(tmp_path, 6, keep_last=1, milestone_every_steps=4)
    remove_cut(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004.ckpt", "step-000006.ckpt"]


def test_the_manifest_is_written_last_and_tells_all_hashes(tmp_path: Path) -> None:
    folder = write(tmp_path / "step", 3, checkpoint())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["world"] == 3
    assert set(manifest["sha256"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
