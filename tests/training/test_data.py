"""Claims about the data of a run, by its config."""

from pathlib import Path

import pytest

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.training.data import build_data
from musicgen_ft.training.trainer import place


def test_the_captions_of_a_run_are_made_as_its_config_says(shards: Path) -> None:
    config = FinetuneConfig(
        shards=str(shards),
        batch_size=2,
        segment_s=1.2,
        cfg_dropout=0.0,
        accelerator="cpu",
        caption_source="template",
        caption_template="{description}, played[ in {key}], {bpm} bpm",
        trigger="zorp",
    )
    data = build_data(config, ShardIndex.open(shards), place(config), margin_frames=None)
    texts = {data.train_crops[position].description for position in range(data.train_crops.num_slots)}
    assert texts == {f"zorp, calm piano number {number}, played" for number in range(5)}
    assert data.valid_crops[0].description == "zorp, calm piano number 100, played"


def test_captions_that_cannot_be_made_are_refused(shards: Path) -> None:
    config = FinetuneConfig(shards=str(shards), accelerator="cpu", caption_source="template")
    with pytest.raises(UserError, match="there is no template"):
        build_data(config, ShardIndex.open(shards), place(config), margin_frames=None)
