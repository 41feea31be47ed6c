"""Losses of an evaluation are those that training logs, and what a reader computes with the plain formula."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.evaluation.forgetting import forgetting_ce, let_base_play
from musicgen_ft.evaluation.likelihood import Likelihood, clips_of, likelihood, training_dtype
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.track import Track, TrackMeta
from musicgen_ft.training.loss import codebook_cross_entropy

CONFIG = FinetuneConfig(segment_s=0.5, valid_max_clips=5, forgetting_clips=3, forgetting_s=0.3)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, nano_folder: Path, write_folder: Callable[..., Path]) -> ShardIndex:
    """Tracks of nano's codes of unlike lengths, some shorter than a clip."""
    codec = open_base(str(nano_folder)).codec().spec

    def track(number: int, num_frames: int) -> Track:
        codes = np.random.default_rng(number).integers(0, codec.card, (codec.n_q, num_frames)).astype(np.uint16)
        labels = Labels(description=f"slow waltz {number}" if number % 3 else None)
        meta = TrackMeta(
            labels=labels, relative_path=f"{number}.wav", num_frames=num_frames, duration_s=num_frames / 50
        )
        return Track(key=f"track_{number:03d}", codes=codes, meta=meta)

    tracks: dict[Split, list[Track]] = {
        "train": [track(number, 40) for number in range(2)],
        "valid": [track(number, length) for number, length in enumerate((70, 9, 25, 40), start=10)],
    }
    return ShardIndex.open(write_folder(tmp_path_factory.mktemp("shards"), codec, tracks))


def test_it_is_the_plain_formula_over_all_frames_however_they_are_batched(index: ShardIndex, nano_folder: Path) -> None:
    base = open_base(str(nano_folder))
    lm, encoder, clips = base.lm().eval(), base.text_encoder(), clips_of(index, "valid", CONFIG)
    assert len(clips) == 5
    sums, frames = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for number in range(len(clips)):
        crop = clips[number]
        with torch.no_grad():
            predictions = lm.predict(crop.codes[None], encoder.encode([crop.description]))
        mask = (predictions.mask & crop.mask)[None]  # [1, K, T]
        loss = codebook_cross_entropy(predictions.logits, crop.codes[None], mask)
        sums += loss.ce_per_codebook.double() * mask.sum((0, 2))
        frames += mask.sum((0, 2))

    told: list[tuple[int, int]] = []
    for batch_size in (1, 3, 8):
        found = likelihood(lm, encoder, clips, batch_size=batch_size, told=lambda *done: told.append(done))
        assert found.ce_per_codebook == pytest.approx((sums / frames).tolist(), rel=1e-6)
        assert (found.num_clips, found.num_frames) == (5, sum(int(clips[n].mask.sum()) for n in range(5)))
    assert told[-1] == (5, 5)


def test_perplexity_is_the_exponential_of_the_mean_over_codebooks() -> None:
    found = Likelihood(ce_per_codebook=(1.0, 2.0, 6.0), num_clips=3, num_frames=50)
    assert found.ce == 3
    assert found.ppl == pytest.approx(math.e**3)
    assert found.to_dict()["ppl_per_codebook"] == pytest.approx([math.e, math.e**2, math.e**6])


def test_the_base_plays_what_forgetting_is_measured_by_and_stays_as_it_is(nano_folder: Path, tmp_path: Path) -> None:
    base = open_base(str(nano_folder))
    lm, encoder = base.lm().eval().requires_grad_(False), base.text_encoder()
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    padding = lm.config.text_padding
    assert forgetting_ce(lm, encoder, tmp_path) is None

    let_base_play(lm, base.codec(), encoder, tmp_path, CONFIG)

    ce = forgetting_ce(lm, encoder, tmp_path)
    assert ce is not None
    assert lm.config.text_padding == padding
    assert all(torch.equal(value, before[name]) for name, value in lm.state_dict().items())
    with torch.no_grad():
        for parameter in lm.heads.parameters():
            parameter.zero_()  # knows nothing any more
    worse = forgetting_ce(lm, encoder, tmp_path)
    assert worse == pytest.approx(math.log(256), rel=1e-5)
    assert worse != ce


def test_no_clips_are_played_where_none_are_wanted(nano_folder: Path, tmp_path: Path) -> None:
    base = open_base(str(nano_folder))
    let_base_play(base.lm(), base.codec(), base.text_encoder(), tmp_path, FinetuneConfig(forgetting_clips=0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("precision", "expected"), [("auto", None), ("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_half_precision_is_that_of_the_run(precision: str, expected: torch.dtype | None) -> None:
    config = FinetuneConfig(precision=precision)  # type: ignore[arg-type]  # of a table of words
    assert training_dtype(config, torch.device("cpu")) == expected
