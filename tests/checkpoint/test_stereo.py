"""A mono base opened in stereo."""

from pathlib import Path

import pytest
import torch

from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.checkpoint.stereo import stereo_state
from musicgen_ft.errors import UserError


def test_a_mono_base_opens_in_stereo_with_twice_the_codebooks(nano_folder: Path) -> None:
    base = open_base(str(nano_folder), channels=2)

    assert (base.lm_config.n_q, base.lm_config.channels) == (8, 2)
    assert base.lm_config.delays == (0, 0, 1, 1, 2, 2, 3, 3)
    assert (base.codec().spec.n_q, base.codec().spec.channels) == (8, 2)
    assert len(base.lm().heads) == len(base.lm().embeddings) == 8


def test_left_and_right_begin_as_copies_of_the_mono_codebook_that_train_apart() -> None:
    mono = {
        "embeddings.1.weight": torch.randn(5, 3),
        "heads.0.weight": torch.randn(4, 3),
        "out_norm.bias": torch.ones(3),
    }
    stereo = stereo_state(mono)

    assert set(stereo) == {
        f"{kind}.{k}.weight" for kind, ks in (("embeddings", (2, 3)), ("heads", (0, 1))) for k in ks
    } | {"out_norm.bias"}
    assert torch.equal(stereo["embeddings.3.weight"], mono["embeddings.1.weight"])
    stereo["embeddings.2.weight"] += 1
    assert torch.equal(stereo["embeddings.3.weight"], mono["embeddings.1.weight"])


def test_a_stereo_base_is_refused_for_mono_shards(nano_folder: Path, tmp_path: Path) -> None:
    from musicgen_ft.checkpoint import transformers_format

    stereo = open_base(str(nano_folder), channels=2)
    transformers_format.write_folder(
        tmp_path, stereo.lm_state(), stereo.lm_config, stereo.codec(), stereo.text_encoder()
    )
    assert open_base(str(tmp_path)).lm_config.channels == 2
    with pytest.raises(UserError, match="is a stereo base, found mono shards: prepare them with --channels 2"):
        _ = open_base(str(tmp_path), channels=1).lm_config
