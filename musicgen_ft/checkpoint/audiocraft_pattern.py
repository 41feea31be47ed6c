"""The ``codebooks_pattern`` of an audiocraft config, there and back."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LMConfig


def read_pattern(config: DictConfig, n_q: int) -> dict[str, Any]:
    """The fields of ``LMConfig`` that describe a pattern: ``pattern``, ``delays``, ``flattening``, ``group_by``.

    Args:
        config: ``xp.cfg``, where ``modeling`` names a section beside it; none means delay, as audiocraft takes it.
        n_q: codebooks.

    Raises:
        UserError: for a pattern that is none of MusicGen's, or with options that are not modelled.
    """
    section = config.codebooks_pattern
    name = section.modeling or "delay"
    options = OmegaConf.to_container(section.get(name) or OmegaConf.create({})) if section.modeling else {}
    assert isinstance(options, dict)
    for option in ("flatten_first", "empty_initial"):
        if options.get(option):
            raise UserError(f"xp.cfg: codebooks_pattern.{name}.{option} is {options[option]}, expected 0.")
    delays = options.get("delays")
    fields: dict[str, Any] = {"pattern": name, "delays": (0,) * n_q}
    if name == "delay":
        fields["delays"] = tuple(range(n_q) if delays is None else delays)
    elif name == "unroll":
        fields |= {"delays": tuple(delays or (0,) * n_q), "flattening": tuple(options.get("flattening") or ())}
    elif name == "coarse_first":
        fields["delays"] = (0, *(delays or (0,) * (n_q - 1)))
    elif name == "musiclm":
        fields["group_by"] = options.get("group_by", 2)
    elif name != "parallel":
        raise UserError(f"xp.cfg: codebooks_pattern.modeling is {name!r}, expected one of MusicGen's, such as 'delay'.")
    return fields


def write_pattern(config: LMConfig) -> dict[str, Any]:
    """The ``codebooks_pattern`` section: the inverse of ``read_pattern``."""
    options: dict[str, dict[str, Any]] = {
        "delay": {"delays": list(config.delays), "flatten_first": 0, "empty_initial": 0},
        "parallel": {},
        "unroll": {"flattening": list(config.flattening) or None, "delays": list(config.delays)},
        "coarse_first": {"delays": list(config.delays[1:])},
        "musiclm": {"group_by": config.group_by or 2},
    }
    return {"modeling": config.pattern, config.pattern: options[config.pattern]}
