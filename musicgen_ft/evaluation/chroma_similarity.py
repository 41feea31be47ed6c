"""How closely generated music follows the tune that it was given.

L samples, F frames of chroma.
"""

import numpy as np
import numpy.typing as npt

from musicgen_ft.chroma import ChromaSpec, chromagram


def chroma_similarity(
    generated: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], spec: ChromaSpec
) -> float:
    """Mean cosine similarity of the chroma frames of two waveforms, in [0, 1].

    Frames are one-hot at the loudest pitch class, so that their cosine is 1 where both have the same and 0 elsewhere:
    the share of frames with the same loudest pitch class. Two tunes that have nothing to do with one another share
    about one in 12, more where both are in one key. Silence has pitch class 0.

    Args:
        generated: float32 [L], mono at the chroma's rate.
        reference: float32 [L], as long as it.
        spec: the numbers of the chromagram.

    Raises:
        ValueError: if lengths disagree, or there is no sample.

    Source: MusicGen (arXiv:2306.05284), section 4; audiocraft's ``ChromaCosineSimilarityMetric`` with ``argmax``, which
    counts ceil(L / hop_length) frames of each clip.
    """
    if generated.shape != reference.shape or generated.ndim != 1 or not len(generated):
        raise ValueError(f"waveforms {generated.shape} and {reference.shape}: expected equal [L], L at least 1")
    num_frames = -(-len(generated) // spec.hop_length)
    one, other = (chromagram(samples, spec)[:num_frames] for samples in (generated, reference))
    return float(np.mean(one == other))
