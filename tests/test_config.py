"""Configs: every shipped YAML is its class, every number is checked, every field is explained."""

import ast
import dataclasses
import inspect
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from musicgen_ft.cli import COMMANDS, parse
from musicgen_ft.config.demo import DemoConfig
from musicgen_ft.config.evaluate import EvaluateConfig
from musicgen_ft.config.export import ExportConfig
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.config.inspect import InspectConfig
from musicgen_ft.config.plain import to_plain, write_yaml
from musicgen_ft.config.plan import PlanConfig
from musicgen_ft.config.prepare import PrepareConfig
from musicgen_ft.config.sample import SampleConfig
from musicgen_ft.config.serve import ServeConfig
from musicgen_ft.config.shipped import config_folder, config_path
from musicgen_ft.config.synthesize import SynthesizeConfig
from musicgen_ft.errors import UserError

CLASSES: dict[str, type[Any]] = {
    "synthesize": SynthesizeConfig,
    "prepare": PrepareConfig,
    "inspect": InspectConfig,
    "finetune": FinetuneConfig,
    "plan": PlanConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "sample": SampleConfig,
    "serve": ServeConfig,
    "demo": DemoConfig,
}
REQUIRED: dict[str, list[str]] = {
    "synthesize": ["--out", "corpus"],
    "prepare": ["corpus", "--out", "shards"],
    "inspect": ["corpus"],
    "finetune": ["shards", "--out", "run"],
    "plan": ["--base", "small"],
    "evaluate": ["run", "--out", "evaluation"],
    "export": ["run", "--out", "generator"],
    "sample": ["generator", "--out", "wavs", "--prompt", "a waltz"],
    "serve": ["nano"],
    "demo": ["--out", "demo"],
}
"""Of every command, the arguments that it cannot do without."""
MAX_KEYS = 45
SHIPPED = sorted(config_folder().rglob("*.yaml"))
NUM_SHIPPED = 13  # whoever adds a YAML counts it here, so that none gets lost unseen

every_yaml = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
every_class = pytest.mark.parametrize("command", CLASSES)


def default(command: str, **changes: Any) -> Any:
    """The command's config with its required arguments, and changes."""
    return dataclasses.replace(parse(CLASSES[command], command, REQUIRED[command]), **changes)


# ---- the shipped files -----------------------------------------------------------------------------------------------


def test_the_number_of_shipped_configs_is_known() -> None:
    assert len(SHIPPED) == NUM_SHIPPED


def test_configs_lie_in_the_folder_of_their_recipe_and_nowhere_else() -> None:
    assert {path.parent.parent for path in SHIPPED} == {config_folder()}
    assert {path.parent.name for path in SHIPPED} <= set(COMMANDS)
    assert {path.suffix for path in config_folder().rglob("*") if path.is_file()} == {".yaml", ".sbatch"}


def test_every_command_has_its_class() -> None:
    assert set(CLASSES) == set(COMMANDS)
    assert {command: f"{command.title()}Config" for command in COMMANDS} == {
        command: of_command.__name__ for command, of_command in CLASSES.items()
    }


@every_yaml
def test_a_shipped_config_parses_into_its_class(path: Path) -> None:
    command = path.parent.name

    by_name = parse(CLASSES[command], command, [*REQUIRED[command], "--config", path.stem])
    by_path = parse(CLASSES[command], command, [*REQUIRED[command], "--config", str(path)])

    assert by_name == by_path
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {name: to_plain(by_name)[name] for name in written} == written


@every_yaml
def test_a_shipped_config_is_flat_short_and_changes_something(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))

    assert isinstance(values, dict)
    assert 1 <= len(values) <= MAX_KEYS
    assert not any(isinstance(value, dict) for value in values.values())


@every_yaml
def test_a_shipped_config_opens_with_what_it_is_for_and_the_command(path: Path) -> None:
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line)

    assert comment, "the first line is no comment"
    commands = [line for line in comment if f"musicgen-ft {path.parent.name} " in line]
    assert any(f"--config {path.stem}" in line for line in commands)


@every_yaml
def test_the_commands_in_a_shipped_configs_comment_parse(path: Path) -> None:
    lines = [line.strip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for line in lines:
        if line.startswith("musicgen-ft "):
            _, command, *words = shlex.split(line)
            parse(CLASSES[command], command, words)


@every_yaml
def test_floats_are_written_so_that_yaml_reads_floats(path: Path) -> None:
    """PyYAML takes 1e-5 for a string; it has to be 1.0e-5."""
    for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        kind = CLASSES[path.parent.name].__dataclass_fields__[name].type
        assert not (kind is float and isinstance(value, str)), f"{name}: {value}"


def test_a_config_that_is_not_there_is_told_with_the_names_that_are(tmp_path: Path) -> None:
    names = ", ".join(path.stem for path in SHIPPED if path.parent.name == "finetune")
    with pytest.raises(UserError, match=f"--config tiny: no such file.*Shipped: {names}"):
        config_path("finetune", "tiny")


def test_a_file_of_the_users_goes_before_a_shipped_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("max_steps: 3\n")
    assert config_path("finetune", "demo") == Path("demo")
    assert config_path("finetune", "small") == config_folder() / "finetune" / "small.yaml"


# ---- the classes -----------------------------------------------------------------------------------------------------


@every_class
def test_a_config_is_frozen_and_keyword_only(command: str) -> None:
    config = CLASSES[command]

    assert config.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(config))
    assert set(config.POSITIONAL) <= {field.name for field in dataclasses.fields(config)}


@every_class
def test_every_field_is_followed_by_its_docstring(command: str) -> None:
    tree = ast.parse(inspect.getsource(sys.modules[CLASSES[command].__module__]))
    body = next(
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == CLASSES[command].__name__
    ).body

    silent = []
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            is_docstring = (
                isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
                and following.value.value.strip().endswith(".")
            )
            if not is_docstring:
                silent.append(ast.unparse(node.target))
    assert silent == []
    assert CLASSES[command].__doc__


@every_class
def test_a_config_goes_through_plain_values_and_yaml_unchanged(command: str, tmp_path: Path) -> None:
    config = default(command, seed=7) if "seed" in CLASSES[command].__dataclass_fields__ else default(command)

    write_yaml(tmp_path / "config.yaml", config)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())

    assert values == to_plain(config)
    assert list(values) == [field.name for field in dataclasses.fields(config)]
    words = [f"--config={tmp_path / 'config.yaml'}"] if command != "demo" else []
    if words:
        assert parse(CLASSES[command], command, words) == config


def test_plain_values_are_plain() -> None:
    assert to_plain(default("sample", prompt=("a", "b")))["prompt"] == ["a", "b"]
    assert to_plain(default("sample"))["out"] == "wavs"
    assert to_plain(default("finetune"))["out"] == "run"


# ---- numbers ---------------------------------------------------------------------------------------------------------

POSITIVE = {
    "synthesize": ["tracks", "duration_s", "workers"],
    "prepare": ["window_s", "shard_mib", "workers", "lease_s"],
    "inspect": ["workers"],
    "finetune": [
        *("max_steps", "batch_size", "micro_batch_size", "segment_s", "lr", "max_grad_norm", "ema_every_steps"),
        "loss_chunk_frames",
        *("valid_every_steps", "valid_max_clips", "save_every_steps", "log_every_steps", "devices", "num_nodes"),
        *("save_every_minutes", "keep_last", "milestone_every_steps", "timeout_minutes", "lora_rank", "lora_alpha"),
        *("early_stop_validations", "forgetting_s", "sample_every_steps", "sample_s"),
    ],
    "plan": ["memory_gib", "devices", "segment_s", "batch_size"],
    "evaluate": ["pieces", "duration_s", "batch_size", "segment_s", "valid_max_clips"],
    "sample": ["duration_s", "batch_size", "stride_s"],
    "serve": ["max_duration_s", "max_models"],
    "demo": ["tracks", "pieces", "duration_s"],
}
NOT_NEGATIVE = {
    "prepare": ["min_duration_s", "max_dc_offset", "min_bandwidth_khz", "codec_check_s"],
    "inspect": ["captions", "players", "seed"],
    "finetune": ["warmup_steps", "weight_decay", "num_workers", "seed", "forgetting_clips"],
    "evaluate": ["players", "seed"],
    "sample": ["top_k", "temperature", "cfg_coef", "cfg_coef_beta", "seed", "retry_silent"],
    "serve": ["port"],
    "demo": ["old_tracks"],
}
PROBABILITY = {
    "prepare": ["valid_fraction", "max_silent_share", "max_clipped_share"],
    "finetune": [
        *("dropout", "ema_decay", "cfg_dropout", "melody_dropout", "lr_min_ratio", "word_dropout", "beta1", "beta2"),
        *("merge_text_p", "drop_desc_p", "field_keep_p", "field_dropout", "lora_dropout"),
    ],
    "sample": ["top_p"],
}


def cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(command, name) for command, names in table.items() for name in names]


@pytest.mark.parametrize(("command", "name"), cases(POSITIVE))
@pytest.mark.parametrize("value", [0, -1])
def test_what_has_to_be_positive_is(command: str, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: found {value}, expected a number above 0\.$"):
        default(command, **{name: value})


@pytest.mark.parametrize(("command", "name"), cases(NOT_NEGATIVE))
def test_what_must_not_be_negative_is_not(command: str, name: str) -> None:
    default(command, **{name: 0})
    with pytest.raises(ValueError, match=rf"^{name}: found -1, expected 0 or more\.$"):
        default(command, **{name: -1})


@pytest.mark.parametrize(("command", "name"), cases(PROBABILITY))
def test_a_probability_is_one(command: str, name: str) -> None:
    default(command, **{name: 0.0})
    for value in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"^{name}: found {value}, expected a number from 0 to 1\.$"):
            default(command, **{name: value})


@pytest.mark.parametrize(("command", "name"), [*cases(POSITIVE), *cases(NOT_NEGATIVE), *cases(PROBABILITY)])
def test_nan_is_no_number(command: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: found nan, expected"):
        default(command, **{name: float("nan")})


def test_every_number_of_every_config_is_checked() -> None:
    """Or is listed here with the reason why any value will do."""
    unchecked = {
        ("synthesize", "seed"): "any whole number makes music",
        ("prepare", "min_loudness_lufs"): "decibels have both signs",
        ("prepare", "min_codec_snr_db"): "decibels have both signs",
        ("demo", "seed"): "the recipes check it",
        ("demo", "max_steps"): "finetune checks it",
    }
    checked = {*cases(POSITIVE), *cases(NOT_NEGATIVE), *cases(PROBABILITY), *unchecked}
    numbers = {
        (command, field.name)
        for command, config in CLASSES.items()
        for field in dataclasses.fields(config)
        if field.type in (int, float, int | None, float | None, int | Literal["auto"] | None)
    }
    assert numbers == checked


def test_an_evaluation_needs_two_seconds_of_music() -> None:
    default("evaluate", pieces=1, duration_s=2.0)
    with pytest.raises(ValueError, match=r"found 3 x 0\.6 s of music, expected at least 2 s.*Give more --pieces"):
        default("evaluate", pieces=3, duration_s=0.6)


def test_a_sample_needs_a_prompt() -> None:
    with pytest.raises(ValueError, match="prompt: found none, expected at least one"):
        default("sample", prompt=())
