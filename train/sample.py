"""Plays prompts into WAV files, each with a JSON beside it that says how it was made.

musicgen-ft sample generator --prompt "slow waltz with strings" --prompt "techno at 128 bpm" --out wavs
musicgen-ft sample facebook/musicgen-small --prompt "lofi hip hop" --out wavs --duration_s 20 --seed 7
musicgen-ft sample generator --prompt "chiptune" --out wavs --engine audiocraft
musicgen-ft sample facebook/musicgen-melody --prompt "string quartet" --melody whistled.wav --out wavs
musicgen-ft sample facebook/musicgen-small --adapter lofi --adapter waltz=0.5 --prompt "lofi waltz" --out wavs
musicgen-ft sample generator --prompt "ambient drone" --out wavs --duration_s 120 --retry_silent 2
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from musicgen_ft.cli import run_recipe
from musicgen_ft.config import SampleConfig, to_plain
from musicgen_ft.terminal import progress_bar, slug

if TYPE_CHECKING:
    from musicgen_ft.generation.generator import Melody
    from musicgen_ft.model.lm import LMConfig


def main(config: SampleConfig) -> None:
    """Opens the generator, plays batch by batch, writes each piece as it is done."""
    from musicgen_ft import __version__
    from musicgen_ft.audio import normalize_loudness, write_wav
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.devices import resolve_device
    from musicgen_ft.files import refuse_used, write_json
    from musicgen_ft.generation.adapters import parse_adapters
    from musicgen_ft.generation.collapse import LoopWatcher, measure
    from musicgen_ft.generation.options import GenerationOptions
    from musicgen_ft.generation.sampling import Sampling
    from musicgen_ft.generation.takes import Take, best_take, play_takes
    from musicgen_ft.peers.engines import open_engine

    refuse_used(config.out)
    adapters = parse_adapters(config.adapter)
    base = open_base(config.generator)
    melody = None if config.melody is None else read_melody(config.melody, base.lm_config, config.generator)
    engine = open_engine(config.engine, base, device=resolve_device(config.device), adapters=adapters)
    options = GenerationOptions(
        duration_s=config.duration_s,
        sampling=Sampling(top_k=config.top_k, top_p=config.top_p, temperature=config.temperature),
        cfg_coef=config.cfg_coef,
        stride_s=config.stride_s,
    )
    pieces = [(number, prompt, config.seed + number) for number, prompt in enumerate(config.prompt)]
    for start in range(0, len(pieces), config.batch_size):
        batch = pieces[start : start + config.batch_size]
        with progress_bar(total=1, desc=f"sample {batch[-1][0] + 1}/{len(pieces)}", unit="step") as bar:

            def progress(done: int, of: int) -> None:
                bar.total, bar.n = of, done  # called while its own bar is open
                bar.refresh()

            def play(numbers: Sequence[int], seeds: Sequence[int]) -> list[Take]:
                prompts = [config.prompt[number] for number in numbers]
                watchers = [LoopWatcher(engine.frame_rate) for _ in numbers]
                waveforms = engine.play(
                    prompts, options, seeds=seeds, melody=melody, progress=progress, watchers=watchers
                )
                return [
                    Take(seed, waveform, measure(waveform.numpy(), engine.sample_rate, loops=watcher.found))
                    for seed, waveform, watcher in zip(seeds, waveforms, watchers, strict=True)
                ]

            takes = play_takes(play, {number: seed for number, _, seed in batch}, retries=config.retry_silent)
        for number, prompt, _ in batch:
            if not prompt.strip():
                print(f"piece {number}: the prompt is empty, played without a condition")
            for take in takes[number]:
                if take.collapse.is_found:
                    print(f"piece {number}: with seed {take.seed} it {take.collapse}")
            take = best_take(takes[number])
            path = config.out / f"{number:03d}_{slug(prompt)}.wav"
            write_wav(path, normalize_loudness(take.waveform, engine.sample_rate), engine.sample_rate)
            how = {**to_plain(config), "prompt": prompt, "seed": take.seed, "sample_rate": engine.sample_rate}
            how["adapter"] = {str(folder): strength for folder, strength in adapters.items()}
            how |= {"seeds_tried": [take.seed for take in takes[number]], "collapse": take.collapse.to_dict()}
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
        return samples
    except AudioError as error:
        raise UserError(f"--melody {error}. Give a file that plays.") from error


if __name__ == "__main__":
    run_recipe(SampleConfig, main)
