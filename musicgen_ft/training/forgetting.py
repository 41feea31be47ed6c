"""What the base knew of other music, and how much of it is lost while it learns a corpus.

The corpus alone cannot tell: its loss falls while everything else goes. So before training the base itself plays a few
captions of other genres, as a listener would have it do; at every validation the loss on these codes is measured again.
No audio of other genres is needed.

K codebooks, T frames.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from musicgen_ft.chroma import DROPPED, ChromaSpec
from musicgen_ft.files import atomic_path
from musicgen_ft.generation.decode import Progress
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import GenerationOptions, requests_of
from musicgen_ft.shards.batch import Batch
from musicgen_ft.weights import write_safetensors

FORGETTING_FILE = "forgetting.safetensors"

CAPTIONS = (
    "a calm solo piano piece, slow and warm",
    "energetic rock with electric guitars and loud drums",
    "hip hop beat with a deep bass line and a soft electric piano",
    "driving techno with a hard kick drum and a hypnotic synth",
    "a string quartet plays a sad classical melody",
    "acoustic folk song with guitar and flute",
    "smooth jazz trio with piano, double bass and brushed drums",
    "ambient pads, dreamy and wide, without a beat",
    "funk groove with slap bass, brass and tight drums",
    "reggae with an offbeat guitar and a round bass",
    "an orchestra plays an epic march with brass and percussion",
    "upbeat pop with bright synths and claps",
)
"""Plain captions of genres across the board; the n-th clip has the n-th of them, and begins again behind the last."""


def sample_base(
    generator: Generator, path: Path, *, num_clips: int, num_frames: int, progress: Progress | None = None
) -> None:
    """Lets the base play, and keeps its codes; the clips' numbers are their seeds.

    Args:
        generator: of the base's weights, on the device that is to play.
        path: the file to make, whole or not at all.
        num_clips: of them; those behind the last caption have other seeds.
        num_frames: T, at most what the model was trained on.
        progress: told after every step of decoding.
    """
    captions = [CAPTIONS[number % len(CAPTIONS)] for number in range(num_clips)]
    frame_rate = generator.codec.spec.frame_rate
    options = GenerationOptions(duration_s=(num_frames + 0.5) / frame_rate)  # the half frame is cut off
    codes = torch.stack(
        generator.codes(requests_of(captions, options, seeds=range(num_clips)), progress=progress)
    ).cpu()
    with atomic_path(path) as temporary:
        write_safetensors(temporary, {"codes": codes.to(torch.int32)}, {"captions": "\n".join(captions)})


class ForgettingProbe:
    """The clips that the base has played."""

    def __init__(self, codes: Tensor, captions: tuple[str, ...], *, chroma: ChromaSpec | None = None) -> None:
        """Clips without padding.

        Args:
            codes: int64 [N, K, T].
            captions: N texts.
            chroma: of a melody model, which hears no melody with them.
        """
        N, _, T = codes.shape
        melody = None if chroma is None else torch.full((N, chroma.num_frames(1)), DROPPED)
        mask = torch.ones(N, T, dtype=torch.bool)
        self.batch = Batch(codes, mask, captions, captions, tuple(range(N)), melody)
        self.base_ce: float | None = None
        """The base's own loss; known once it was measured, or a checkpoint has told it."""

    @classmethod
    def of_run(cls, run: Path, *, chroma: ChromaSpec | None, device: torch.device) -> "ForgettingProbe | None":
        """The probe that ``sample_base`` has put into a run's folder; None where there is none."""
        path = run / FORGETTING_FILE
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            captions = (file.metadata() or {})["captions"].split("\n")
            probe = cls(file.get_tensor("codes").long(), tuple(captions), chroma=chroma)
        probe.batch = probe.batch.to(device)
        return probe

    def metrics(self, ce: float, *, is_base: bool) -> dict[str, float]:
        """What a validation says: the loss, and by how much it is above the base's own, in nats.

        The codes are the base's: a model that plays as the base does has a difference of 0, and one that does not has
        more. It is no full divergence, since the base was guided when it played.
        """
        if is_base:
            self.base_ce = ce
        of_base = {} if self.base_ce is None else {"valid/forgetting_delta": ce - self.base_ce}
        return {"valid/forgetting_ce": ce} | of_base

    def taken_up(self, base_ce: float, ce: float) -> dict[str, float]:
        """As ``metrics``, of the checkpoint that a run goes on from."""
        self.base_ce = base_ce
        return self.metrics(ce, is_base=False)
