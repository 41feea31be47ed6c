"""Releases are known without a download, under every name that people call them by."""

import dataclasses
from pathlib import Path

import pytest
import torch

from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.checkpoint.released import outline, released
from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LanguageModel

# Spec 1.1: sizes of the released files, two bytes for each number; less the chroma's window of 16384.
NUM_PARAMETERS = {
    "small": 420_371_456,
    "medium": 1_838_737_920,
    "large": 3_256_956_928,
    "melody": 1_385_641_984 - 16_384,
    "melody-large": 2_451_496_960 - 16_384,
    "stereo-small": 437_152_768,
    "stereo-melody": 1_410_813_952 - 16_384,
    "stereo-melody-large": 2_485_059_584 - 16_384,
}


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_a_release_has_the_parameters_of_its_file(name: str) -> None:
    with torch.device("meta"):
        lm = LanguageModel(released(name))
    assert sum(parameter.numel() for parameter in lm.parameters()) == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", ["stereo-small", "musicgen-stereo-small", "facebook/musicgen-stereo-small"])
def test_a_release_has_three_names(name: str) -> None:
    found = outline(name)
    assert (found.place, found.lm_config) == ("facebook/musicgen-stereo-small", released("stereo-small"))
    assert found.text_encoder_bytes == 4 * 109_628_544  # T5-base's encoder
    assert found.frame_rate == 50


def test_a_folder_tells_its_own_numbers(nano_folder: Path) -> None:
    base, found = open_base(str(nano_folder)), outline(str(nano_folder))
    assert found.lm_config == base.lm_config
    encoder = base.text_encoder().encoder
    assert found.text_encoder_bytes == 4 * sum(parameter.numel() for parameter in encoder.parameters())
    assert dataclasses.replace(found, place="nano") == outline("nano")


@pytest.mark.parametrize("name", ["somebody/musicgen-of-hers", "huge"])
def test_what_is_not_known_is_not_fetched(name: str) -> None:
    with pytest.raises(UserError, match=name):
        outline(name)
