"""The folder of a run: its records, its checkpoints, what it gives to an export and to a resume."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.training.run import RunFolder, check_free, exported_weights, places, resumed_config

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers

Run = Any
"""tests/training/conftest.py's."""


# ---- records ---------------------------------------------------------------------------------------------------------


def test_config_info_and_probe_come_back_as_they_were(start_run: Callable[..., Run]) -> None:
    run = start_run(cfg_dropout=0.25, lr=1.5e-5)
    opened = RunFolder.open(run.folder.path)
    assert opened.config() == run.module.config
    assert opened.info() == run.folder.info()
    crop, probe = run.data.valid_crops[0], opened.probe()
    assert torch.equal(probe.codes[0], crop.codes[:, : int(crop.mask.sum())])
    assert probe.codes.dtype == torch.int64
    assert probe.description == crop.description == "calm piano number 100"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        RunFolder.open(tmp_path / "missing")
    with pytest.raises(UserError, match=r"is no run: run\.json or config\.yaml is not there"):
        RunFolder.open(tmp_path)


def test_a_run_of_another_version_is_refused(start_run: Callable[..., Run]) -> None:
    folder = start_run().folder
    config = folder.path / "config.yaml"
    config.write_text(config.read_text() + "an_option_of_the_future: 3\n")
    (folder.path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.yaml is of another version"):
        folder.config()
    with pytest.raises(UserError, match=r"run\.json is of another version"):
        folder.info()


def test_a_place_that_holds_a_run_or_anything_else_is_not_free(start_run: Callable[..., Run], tmp_path: Path) -> None:
    run = start_run()
    with pytest.raises(UserError, match=r"holds another run\. Go on with it: musicgen-ft finetune --resume"):
        check_free(run.module.config)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "song.wav").touch()
    with pytest.raises(UserError, match="is not empty"):
        check_free(dataclasses.replace(run.module.config, out=tmp_path / "full"))
    check_free(dataclasses.replace(run.module.config, out=tmp_path / "new"))


@pytest.mark.parametrize("missing", ["shards", "out"])
def test_shards_and_out_must_be_given(missing: str) -> None:
    given: dict[str, Any] = {"shards": "shards", "out": Path("run"), missing: None}
    with pytest.raises(UserError, match="expected SHARDS and --out RUN, or --resume RUN"):
        places(FinetuneConfig(**given))


# ---- resume ----------------------------------------------------------------------------------------------------------


def test_a_resumed_run_takes_all_but_its_place_from_the_run() -> None:
    of_run = FinetuneConfig(shards="shards", out=Path("was/here"), lr=3e-5, max_steps=77, num_workers=5, devices=4)
    asked = FinetuneConfig(resume=Path("now/there"), devices=1, num_workers=0, micro_batch_size=2)
    config = resumed_config(asked, of_run)
    assert (config.lr, config.max_steps, config.shards) == (3e-5, 77, "shards")
    assert (config.out, config.resume, config.devices, config.micro_batch_size) == (Path("now/there"), None, 1, 2)


@pytest.mark.parametrize("given", [{"lr": 1e-4}, {"max_steps": 5}, {"shards": "others"}, {"out": Path("x")}])
def test_what_a_resumed_run_takes_from_the_run_is_refused(given: dict[str, Any]) -> None:
    of_run = FinetuneConfig(shards="shards", out=Path("run"))
    with pytest.raises(UserError, match=f"--resume takes {next(iter(given))} from the run"):
        resumed_config(FinetuneConfig(resume=Path("run"), **given), of_run)


# ---- export ----------------------------------------------------------------------------------------------------------


def test_best_falls_back_to_last_and_nothing_is_told(start_run: Callable[..., Run]) -> None:
    folder = start_run().folder
    assert folder.saved() is None
    for which in ("best", "last"):
        with pytest.raises(UserError, match="the run ended before its first save"):
            folder.checkpoint(which)
    torch.save({}, folder.checkpoints / "step-000007.ckpt")
    assert folder.checkpoint("best").name == folder.checkpoint("last").name == "step-000007.ckpt"
    torch.save({}, folder.checkpoints / "best.ckpt")
    assert folder.checkpoint("best").name == "best.ckpt"


def test_a_damaged_best_is_told_with_what_to_do(start_run: Callable[..., Run]) -> None:
    folder = start_run().folder
    torch.save({}, folder.checkpoints / "step-000007.ckpt")
    (folder.checkpoints / "best.ckpt").write_bytes(b"PK cut")
    with pytest.raises(UserError, match=r"best\.ckpt is damaged .* Export with --checkpoint last"):
        folder.checkpoint("best")


def test_a_file_that_is_no_training_checkpoint_is_refused(start_run: Callable[..., Run]) -> None:
    folder = start_run().folder
    torch.save({"best_state": {}}, folder.checkpoints / "step-000002.ckpt")
    for read in (folder.saved, lambda: folder.read_checkpoint("last")):
        with pytest.raises(UserError, match=r"is no training checkpoint: it holds \['best_state'\]"):
            read()
    torch.save({"state_dict": {}, "global_step": 3}, folder.checkpoints / "step-000003.ckpt")
    with pytest.raises(UserError, match=r"step-000003\.ckpt is of another version"):
        folder.saved()


def equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_an_export_gets_the_averaged_or_the_raw_weights(start_run: Callable[..., Run]) -> None:
    run = start_run().fit()
    checkpoint, module = run.folder.read_checkpoint("last"), run.module
    assert module.ema is not None
    raw, averaged = dict(module.lm.state_dict()), dict(module.ema.weights)
    assert not equal(raw, averaged)
    assert equal(exported_weights(checkpoint, "raw").state, raw)
    for kind in ("auto", "ema"):
        assert equal(exported_weights(checkpoint, kind).state, averaged)
    metrics = exported_weights(checkpoint, "auto").metrics
    assert (metrics["step"], metrics["weights"]) == (6, "averaged")
    assert metrics["valid_ce"] == module.latest["valid/ce"]
    assert metrics["base_ce"] == pytest.approx(float(run.rows()[0]["valid/ce"]), rel=1e-5)


@pytest.mark.parametrize("changes", [{"ema_decay": 0.0}, {"ema_every_steps": 100}])
def test_a_run_that_averaged_nothing_exports_its_raw_weights(
    start_run: Callable[..., Run], changes: dict[str, float]
) -> None:
    run = start_run(**changes).fit()
    checkpoint = run.folder.read_checkpoint("last")
    exported = exported_weights(checkpoint, "auto")
    assert equal(exported.state, dict(run.module.lm.state_dict()))
    assert exported.metrics["weights"] == "raw"
    with pytest.raises(UserError, match="--weights ema: the run kept no average"):
        exported_weights(checkpoint, "ema")
