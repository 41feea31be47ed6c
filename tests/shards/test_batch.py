import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from lightning.pytorch.utilities import move_data_to_device
from torch.utils.data import DataLoader

from musicgen_ft.shards.batch import Batch, Crop, collate

B, K, T = 2, 3, 5


@pytest.fixture
def batch() -> Batch:
    codes = torch.arange(B * K * T).reshape(B, K, T)
    mask = torch.arange(T) < torch.tensor([[5], [2]])
    return collate(
        [
            Crop(codes[0], mask[0], description="calm", key="a", position=7),
            Crop(codes[1], mask[1], description=None, key="b", position=8),
        ]
    )


def test_collate_stacks_in_order(batch: Batch) -> None:
    assert torch.equal(batch.codes, torch.arange(B * K * T).reshape(B, K, T))
    assert batch.mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    assert batch[2:] == (("calm", None), ("a", "b"), (7, 8), None)


@pytest.mark.parametrize(("margin_frames", "left"), [(None, 5), (0, 3), (1, 4), (2, 5), (9, 5)])
def test_collate_cuts_off_what_is_padding_in_all_crops_but_for_a_margin(margin_frames: int | None, left: int) -> None:
    codes, mask = torch.arange(B * K * T).reshape(B, K, T), torch.arange(T) < torch.tensor([[1], [3]])
    chroma = torch.arange(7)
    crops = [Crop(codes[i], mask[i], description=None, key="a", position=i, chroma=chroma) for i in range(B)]

    cut = collate(crops, margin_frames=margin_frames)

    assert torch.equal(cut.codes, codes[:, :, :left])
    assert torch.equal(cut.mask, mask[:, :left])
    assert cut.chroma is not None
    assert cut.chroma.shape == (B, 7)


def test_lightning_moves_a_batch_to_a_device(batch: Batch) -> None:
    moved = move_data_to_device(batch, torch.device("meta"))

    assert isinstance(moved, Batch)
    assert (moved.codes.device.type, moved.mask.device.type) == ("meta", "meta")
    assert moved[2:] == batch[2:]


def test_lightning_leaves_a_batch_whole_in_half_precision(batch: Batch) -> None:
    # A frozen dataclass raises here: "A frozen dataclass was passed to `apply_to_collection`".
    converted = HalfPrecision("bf16-true").convert_input(batch)

    assert isinstance(converted, Batch)
    assert (converted.codes.dtype, converted.mask.dtype) == (torch.int64, torch.bool)
    assert converted[2:] == batch[2:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_dataloader_pins_a_batch_and_it_moves_to_the_gpu() -> None:
    crops = [Crop(torch.full((K, T), i), torch.ones(T, dtype=torch.bool), None, f"{i}", i) for i in range(B)]

    (pinned,) = DataLoader(crops, batch_size=B, collate_fn=collate, pin_memory=True)  # type: ignore[arg-type]  # a list
    moved = move_data_to_device(pinned, "cuda")

    assert pinned.codes.is_pinned()
    assert pinned.mask.is_pinned()
    assert isinstance(moved, Batch)
    assert moved.codes.is_cuda
    assert torch.equal(moved.codes.cpu(), pinned.codes)
