"""Plays prompts into WAV files, each with a JSON beside it that says how it was made.

musicgen-ft sample generator --prompt "slow waltz with strings" --prompt "techno at 128 bpm" --out wavs
musicgen-ft sample facebook/musicgen-small --prompt "lofi hip hop" --out wavs --duration_s 20 --seed 7
musicgen-ft sample generator --prompt "chiptune" --out wavs --engine audiocraft
musicgen-ft sample facebook/musicgen-melody --prompt "string quartet" --melody whistled.wav --out wavs
musicgen-ft sample generator --prompt "waltz" --audio_prompt beginning.wav --negative_prompt "drums" --out wavs
"""

from pathlib import Path
from typing import TYPE_CHECKING

from musicgen_ft.cli import run_recipe
from musicgen_ft.config import SampleConfig, to_plain
from musicgen_ft.terminal import progress_bar, slug

if TYPE_CHECKING:
    from torch import Tensor

    from musicgen_ft.checkpoint.base import Base
    from musicgen_ft.generation.options import Melody
    from musicgen_ft.model.lm import LMConfig

LONG_PROMPT = 200
"""Words: far more than a description of MusicGen's training has."""


def main(config: SampleConfig) -> None:
    """Opens the generator, plays batch by batch, writes each piece as it is done."""
    from musicgen_ft import __version__
    from musicgen_ft.audio import normalize_loudness, write_wav
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.devices import resolve_device
    from musicgen_ft.errors import UserError
    from musicgen_ft.files import refuse_used, write_json
    from musicgen_ft.generation.options import Request
    from musicgen_ft.generation.sampling import Sampling
    from musicgen_ft.peers.engines import open_engine

    refuse_used(config.out)
    if config.cfg_coef_beta is not None and config.melody is None:
        raise UserError("cfg_coef_beta sets the prompt against a melody, found none. Give --melody FILE.")
    base = open_base(config.generator)
    melody = None if config.melody is None else read_melody(config.melody, base.lm_config, config.generator)
    beginning = None if config.audio_prompt is None else read_beginning(config.audio_prompt, base)
    engine = open_engine(config.engine, base, device=resolve_device(config.device), dtype=config.dtype)
    sampling = Sampling(top_k=config.top_k, top_p=config.top_p, temperature=config.temperature)
    pieces = [
        Request(
            prompt=prompt,
            duration_s=config.duration_s,
            seed=config.seed + number,
            sampling=sampling,
            cfg_coef=config.cfg_coef,
            cfg_coef_beta=config.cfg_coef_beta,
            negative_prompt=config.negative_prompt,
            melody=melody,
            audio_prompt=beginning,
        )
        for number, prompt in enumerate(config.prompt)
    ]
    for start in range(0, len(pieces), config.batch_size):
        batch = pieces[start : start + config.batch_size]
        with progress_bar(total=1, desc=f"sample {start + len(batch)}/{len(pieces)}", unit="step") as bar:

            def progress(done: int, of: int) -> None:
                bar.total, bar.n = of, done  # called while its own bar is open
                bar.refresh()

            waveforms = engine.play(
                batch, stride_s=config.stride_s, two_step_cfg=config.two_step_cfg, progress=progress
            )
        for number, (request, waveform) in enumerate(zip(batch, waveforms, strict=True), start=start):
            prompt, seed = request.prompt or "", request.seed
            if not prompt.strip():
                print(f"piece {number}: the prompt is empty, played without a condition")
            if (num_words := len(prompt.split())) > LONG_PROMPT:
                print(f"piece {number}: all {num_words} words of the prompt were read; the base has learned from few")
            path = config.out / f"{number:03d}_{slug(prompt)}.wav"
            write_wav(path, normalize_loudness(waveform, engine.sample_rate), engine.sample_rate)
            how = {**to_plain(config), "prompt": prompt, "seed": seed, "sample_rate": engine.sample_rate}
            write_json(path.with_suffix(".json"), {**how, "toolkit_version": __version__})
            print(path)


def read_melody(path: Path, config: "LMConfig", generator: str) -> "Melody":
    """The file in mono at the rate of the generator's chroma."""
    from musicgen_ft.audio import AudioError, read
    from musicgen_ft.errors import UserError

    if config.chroma is None:
        raise UserError(
            f"--melody {path}: {generator} takes no melody. Use facebook/musicgen-melody, or a generator made from it."
        )
    try:
        samples: Melody = read(path, sample_rate=config.chroma.sample_rate, channels=1)[0]
    except AudioError as error:
        raise UserError(f"--melody {error}. Give a file that plays.") from error
    if not samples.any():
        raise UserError(f"--melody {path} is silent: there is no tune to follow. Give another file, or none.")
    return samples


def read_beginning(path: Path, base: "Base") -> "Tensor":
    """The file as a waveform [C, L] at the rate and channels of the generator."""
    import torch

    from musicgen_ft.audio import AudioError, read
    from musicgen_ft.errors import UserError

    spec = base.codec().spec
    try:
        return torch.from_numpy(read(path, sample_rate=spec.sample_rate, channels=spec.channels))
    except AudioError as error:
        raise UserError(f"--audio_prompt {error}. Give a file that plays.") from error


if __name__ == "__main__":
    run_recipe(SampleConfig, main)
