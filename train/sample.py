"""Plays prompts into WAV files, each with a JSON beside it that says how it was made.

musicgen-ft sample generator --prompt "slow waltz with strings" --prompt "techno at 128 bpm" --out wavs
musicgen-ft sample facebook/musicgen-small --prompt "lofi hip hop" --out wavs --duration_s 20 --seed 7
musicgen-ft sample generator --prompt "chiptune" --out wavs --engine audiocraft
"""

from musicgen_ft.cli import run_recipe
from musicgen_ft.config import SampleConfig, to_plain
from musicgen_ft.terminal import progress_bar, slug


def main(config: SampleConfig) -> None:
    """Opens the generator, plays batch by batch, writes each piece as it is done."""
    from musicgen_ft import __version__
    from musicgen_ft.audio import normalize_loudness, write_wav
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.devices import resolve_device
    from musicgen_ft.files import refuse_used, write_json
    from musicgen_ft.generation.options import GenerationOptions
    from musicgen_ft.generation.sampling import Sampling
    from musicgen_ft.peers.engines import open_engine

    refuse_used(config.out)
    engine = open_engine(config.engine, open_base(config.generator), device=resolve_device(config.device))
    options = GenerationOptions(
        duration_s=config.duration_s,
        sampling=Sampling(top_k=config.top_k, top_p=config.top_p, temperature=config.temperature),
        cfg_coef=config.cfg_coef,
        stride_s=config.stride_s,
    )
    pieces = [(number, prompt, config.seed + number) for number, prompt in enumerate(config.prompt)]
    for start in range(0, len(pieces), config.batch_size):
        batch = pieces[start : start + config.batch_size]
        numbers, prompts, seeds = zip(*batch, strict=True)
        with progress_bar(total=1, desc=f"sample {numbers[-1] + 1}/{len(pieces)}", unit="step") as bar:

            def progress(done: int, of: int) -> None:
                bar.total, bar.n = of, done  # called while its own bar is open
                bar.refresh()

            waveforms = engine.play(prompts, options, seeds=seeds, progress=progress)
        for (number, prompt, seed), waveform in zip(batch, waveforms, strict=True):
            if not prompt.strip():
                print(f"piece {number}: the prompt is empty, played without a condition")
            path = config.out / f"{number:03d}_{slug(prompt)}.wav"
            write_wav(path, normalize_loudness(waveform, engine.sample_rate), engine.sample_rate)
            how = {**to_plain(config), "prompt": prompt, "seed": seed, "sample_rate": engine.sample_rate}
            write_json(path.with_suffix(".json"), {**how, "toolkit_version": __version__})
            print(path)


if __name__ == "__main__":
    run_recipe(SampleConfig, main)
