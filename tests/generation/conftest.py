"""What the tests of decoding share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from musicgen_ft.chroma import ChromaSpec, MelodyStates, generation_melody


@pytest.fixture(scope="session")
def chroma_spec() -> ChromaSpec:
    """7 pitch classes, so that one dimension less is like another."""
    return ChromaSpec(sample_rate=1200, n_chroma=7, n_fft=512, hop_length=128)


@pytest.fixture(scope="session")
def prefix(chroma_spec: ChromaSpec) -> dict[str, Any]:
    """The changes that make ``make_lm`` a melody model."""
    return {"conditioning": "prefix", "chroma": chroma_spec}


@pytest.fixture(scope="session")
def melody_of(chroma_spec: ChromaSpec) -> Callable[[int], MelodyStates]:
    """A function that makes melodies of so many rows, as generation has them."""

    def make(rows: int) -> MelodyStates:
        chroma = torch.randint(7, (rows, 5), generator=torch.Generator().manual_seed(1))
        return generation_melody(chroma, chroma_spec, duration_s=1.0)

    return make
