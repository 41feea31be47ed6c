"""A pattern written into ``xp.cfg`` is the one that audiocraft's builder makes of it, and is read back."""

from typing import Any

import pytest
import torch
from audiocraft.models import builders
from omegaconf import OmegaConf

from musicgen_ft.checkpoint.audiocraft_pattern import read_pattern, write_pattern
from musicgen_ft.model.lm import LMConfig

PATTERNS: list[dict[str, Any]] = [
    {"pattern": "delay", "delays": (0, 1, 2, 3)},
    {"pattern": "delay", "delays": (0, 1, 1, 1)},
    {"pattern": "parallel", "delays": (0, 0, 0, 0)},
    {"pattern": "unroll", "delays": (0, 0, 0, 0)},
    {"pattern": "unroll", "delays": (0, 3, 3, 3), "flattening": (0, 1, 1, 1)},
    {"pattern": "coarse_first", "delays": (0, 0, 1, 2)},
    {"pattern": "musiclm", "delays": (0, 0, 0, 0), "group_by": 2},
]


@pytest.mark.parametrize("fields", PATTERNS)
@pytest.mark.parametrize("T", [1, 6])
def test_audiocraft_builds_the_pattern_that_was_written(fields: dict[str, Any], T: int) -> None:
    sizes: dict[str, Any] = {"dim": 8, "num_heads": 1, "num_layers": 1, "ffn_dim": 8, "card": 500, "text_dim": 4}
    config = LMConfig(n_q=4, **sizes, **fields)
    section = OmegaConf.create(write_pattern(config))
    codes = torch.arange(4 * T).reshape(1, 4, T)

    theirs, _, _ = builders.get_codebooks_pattern_provider(4, section).get_pattern(T).build_pattern_sequence(codes, 500)

    assert torch.equal(config.make_pattern().interleave(codes, 500), theirs)
    read = read_pattern(OmegaConf.create({"codebooks_pattern": section}), 4)
    assert LMConfig(n_q=4, **sizes, **read) == config
