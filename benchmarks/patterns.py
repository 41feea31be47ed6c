"""The paper's comparison of patterns at toy scale: the same tiny model, trained from nothing under each.

python benchmarks/patterns.py
python benchmarks/patterns.py --steps 2000 --patterns parallel delay flatten
python benchmarks/patterns.py --codes nano

MusicGen (arXiv:2306.05284, section 4.3) finds that a delay does nearly as well as flattening at a quarter of the
steps, and that both beat parallel. Here every pattern gets the same initial weights, crops, optimizer steps and
unconditional text, and is scored on the same held-out codes of a synthesized corpus. The codes are of two kinds:
  mel   a residual quantizer of 4 codebooks of 32, fitted by k-means to mel frames (50 per second)
  nano  the bundled codec's, 4 codebooks of 256: its encoder is random, and a tiny model learns little of them

What came out (RESULTS.md): on mel codes the paper's order shows at 2000 steps, which take about 6 minutes; up to 1000
steps flatten, whose sequences are four times as long, has not learned enough to be ahead. On nano's codes no pattern
gets far beyond the codes' frequencies within 300 steps, and the comparison says nothing.

What is scored. Each pattern factorises the same codes, step by step; the sum over codebooks is the negative
log-likelihood per frame, in nats, of the distribution that it samples from. So sums compare, but single codebooks do
not: each is predicted from other codes.
  parallel       each code from all earlier frames, without those of its own frame
  coarse first   codebook 1 from its own past alone; the others from the whole of codebook 1, the future too
  delay          codebook k from those before it, at least up to its own frame, and from those behind it, whose last
                 frames before its own are not there yet; the codes of one step are of different frames
  partial delay  codebook 1 from its past, and from the others but for the frame before; the others from codebook 1
                 of their frame and from the past, but not from one another
  flatten        each code from all before it: the only one that leaves no dependence out
Codes of one step are drawn independently of one another. What they share, given the past, is lost: the sum is a bound
on the codes' entropy that lies above it by at least as much, for parallel the whole dependence within a frame (a
product of marginals).

B batch, K codebooks, T frames.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchaudio
from torch import Tensor

from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel, LMConfig
from musicgen_ft.model.patterns import PatternName
from musicgen_ft.synthesis.genres import GENRES
from musicgen_ft.synthesis.render import render_track
from musicgen_ft.training.loss import codebook_cross_entropy, codebook_sums
from musicgen_ft.training.optim import parameter_groups, warmup_cosine

PATTERNS: dict[str, tuple[PatternName, tuple[int, ...]]] = {
    "parallel": ("parallel", (0, 0, 0, 0)),
    "coarse first": ("coarse_first", (0, 0, 0, 0)),
    "delay": ("delay", (0, 1, 2, 3)),
    "partial delay": ("delay", (0, 1, 1, 1)),
    "flatten": ("unroll", (0, 0, 0, 0)),
}
CARDS = {"mel": 32, "nano": 256}
SAMPLE_RATE, FRAME_RATE = 16_000, 50  # nano's
CROP_FRAMES = 100  # 2 s
BATCH_SIZE = 8
TEXT_DIM = 8
TRACK_S = 20.0
NUM_VALID_TRACKS = 16


class Score(NamedTuple):
    """What a pattern came to."""

    train_s: float
    """Seconds of training."""
    ce: list[float]
    """Held-out cross-entropy of each codebook, in nats."""


def main() -> None:
    """Trains under each pattern and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--codes", choices=("mel", "nano"), default="mel", help="what stands for the codec's codes")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of each pattern")
    parser.add_argument("--tracks", type=int, default=96, help=f"training tracks of {TRACK_S:g} s")
    parser.add_argument("--seed", type=int, default=0, help="of weights and crops; the corpus stays the same")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS), help="which to train")
    args = parser.parse_args()

    torch.set_num_threads(1)
    waveforms = render_corpus(NUM_VALID_TRACKS + args.tracks)
    tracks = mel_codes(waveforms) if args.codes == "mel" else nano_codes(waveforms)
    valid, train = tracks[:NUM_VALID_TRACKS], tracks[NUM_VALID_TRACKS:]
    print(f"{len(train)} tracks for training, {len(valid)} held out, {TRACK_S:g} s each")
    print(f"{args.codes} codes; {args.steps} steps of {BATCH_SIZE} crops of {CROP_FRAMES} frames, seed {args.seed}\n")
    print("| pattern | steps per 30 s | training, s | CE q1 | q2 | q3 | q4 | mean | nats per frame |")
    print("|---|---|---|---|---|---|---|---|---|")
    print_row("(frequencies alone)", "", "", unigram_score(train, valid))
    for name in args.patterns:
        lm = build_lm(name, CARDS[args.codes], seed=args.seed)
        score = train_and_score(lm, train, valid, num_steps=args.steps, seed=args.seed)
        # The first step is given; the model makes all others.
        steps = lm.pattern.num_steps(30 * FRAME_RATE) - 1
        print_row(name, str(steps), f"{score.train_s:.0f}", score.ce)


def print_row(name: str, steps: str, seconds: str, ce: list[float]) -> None:
    """One row of the table."""
    values = " | ".join(f"{value:.3f}" for value in [*ce, sum(ce) / len(ce), sum(ce)])
    print(f"| {name} | {steps} | {seconds} | {values} |", flush=True)


def unigram_score(train: Tensor, valid: Tensor) -> list[float]:
    """Held-out cross-entropy of each codebook for who knows how frequent its codes are, and nothing else."""
    counts = [torch.bincount(codes.flatten(), minlength=int(train.max()) + 1) + 1.0 for codes in train.unbind(1)]
    frequencies = [count / count.sum() for count in counts]
    return [float(-f.log()[codes].mean()) for f, codes in zip(frequencies, valid.unbind(1), strict=True)]


def render_corpus(num_tracks: int) -> Tensor:
    """Mono tracks of all genres in turn, float32 [tracks, L]."""
    genres = list(GENRES)
    tracks = []
    for number in range(num_tracks):
        genre = genres[number % len(genres)]
        track = render_track(0, number, genre=genre, duration_s=TRACK_S, sample_rate=SAMPLE_RATE)
        tracks.append(torch.from_numpy(track.waveform).float().mean(0))
    return torch.stack(tracks)


def nano_codes(waveforms: Tensor) -> Tensor:
    """int64 [tracks, K, T] by the bundled codec."""
    codec = open_base("nano").codec()
    return torch.cat([codec.encode(waveform[None, None]) for waveform in waveforms])


def mel_codes(waveforms: Tensor, *, num_codebooks: int = 4, num_rounds: int = 10) -> Tensor:
    """int64 [tracks, K, T] by a residual quantizer of log mel frames, fitted to the training tracks."""
    hop = SAMPLE_RATE // FRAME_RATE
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, n_fft=2 * hop, hop_length=hop, n_mels=32)
    residual = mel(waveforms).clamp(min=1e-4).log()[..., : waveforms.shape[1] // hop].transpose(1, 2)  # [tracks, T, 32]
    generator, codes = torch.Generator().manual_seed(0), []
    for _ in range(num_codebooks):
        frames = residual[NUM_VALID_TRACKS:].flatten(0, 1)
        entries = frames[torch.randperm(len(frames), generator=generator)[: CARDS["mel"]]]
        for _ in range(num_rounds):  # k-means
            nearest = torch.cdist(frames, entries).argmin(1)
            counts = torch.bincount(nearest, minlength=len(entries))[:, None]
            means = torch.zeros_like(entries).index_add_(0, nearest, frames) / counts.clamp(min=1)
            entries = means.where(counts > 0, entries)
        codes.append(torch.cdist(residual, entries).argmin(2))
        residual = residual - entries[codes[-1]]
    return torch.stack(codes, dim=1)


def build_lm(name: str, card: int, *, seed: int) -> LanguageModel:
    """The tiny model under a pattern, the same weights under each."""
    pattern, delays = PATTERNS[name]
    torch.manual_seed(seed)
    config = LMConfig(
        dim=64,
        num_heads=4,
        num_layers=2,
        ffn_dim=256,
        n_q=len(delays),
        card=card,
        delays=delays,
        pattern=pattern,
        text_dim=TEXT_DIM,
    )
    lm = LanguageModel(config)
    lm.init_weights()
    return lm


def train_and_score(lm: LanguageModel, train: Tensor, valid: Tensor, *, num_steps: int, seed: int) -> Score:
    """Trains with the recipe's loss and optimizer, then scores the held-out tracks."""
    generator = torch.Generator().manual_seed(seed)
    groups = parameter_groups(lm, weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups, lr=4e-3, betas=(0.9, 0.95), fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(num_steps))
    begin = time.perf_counter()
    for _ in range(num_steps):
        codes = random_crops(train, generator)
        logits, mask = lm.predict(codes, null_text(len(codes)))
        optimizer.zero_grad()
        codebook_cross_entropy(logits, codes, mask.expand_as(codes)).ce.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return Score(time.perf_counter() - begin, held_out_ce(lm, valid))


def schedule(num_steps: int) -> Callable[[int], float]:
    """Share of the learning rate at each step."""
    return lambda step: warmup_cosine(step, warmup_steps=num_steps // 10, max_steps=num_steps, min_ratio=0.1)


def random_crops(tracks: Tensor, generator: torch.Generator) -> Tensor:
    """Crops int64 [B, K, T] from anywhere in the tracks."""
    chosen = torch.randint(len(tracks), (BATCH_SIZE,), generator=generator).tolist()
    starts = torch.randint(tracks.shape[2] - CROP_FRAMES + 1, (BATCH_SIZE,), generator=generator).tolist()
    return torch.stack([tracks[i, :, t : t + CROP_FRAMES] for i, t in zip(chosen, starts, strict=True)])


@torch.no_grad()
def held_out_ce(lm: LanguageModel, tracks: Tensor) -> list[float]:
    """Cross-entropy of each codebook over all crops side by side, on the frames that every pattern predicts."""
    num_shared = CROP_FRAMES - max(delay for _, delays in PATTERNS.values() for delay in delays)
    shared = torch.arange(CROP_FRAMES) < num_shared
    sums, counts = torch.zeros(2, lm.config.n_q)
    for crops in tracks.split(CROP_FRAMES, dim=2):
        if crops.shape[2] == CROP_FRAMES:
            logits, _ = lm.predict(crops, null_text(len(crops)))
            more = codebook_sums(logits, crops, shared.expand_as(crops))
            sums, counts = sums + more[0], counts + more[1]
    return [float(value) for value in sums / counts]


def null_text(num_rows: int) -> TextStates:
    """No condition."""
    return TextStates(torch.zeros(num_rows, 1, TEXT_DIM), torch.zeros(num_rows, 1, dtype=torch.bool))


if __name__ == "__main__":
    main()
