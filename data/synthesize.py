"""Makes a small labelled corpus by rule: wav files with a JSON of labels beside each.

musicgen-ft synthesize --out corpus
musicgen-ft synthesize --out corpus --tracks 1000 --duration_s 30 --seed 7
python data/synthesize.py --out corpus --genres techno --genres waltz
"""

from musicgen_ft.cli import run_recipe
from musicgen_ft.config.synthesize import SynthesizeConfig
from musicgen_ft.terminal import progress_bar

TRACKS_OF_A_WORKER = 32
"""At least; two processes for 64 tracks of 10 s took 5.4 s, one 10.2."""


def main(config: SynthesizeConfig) -> None:
    """Renders the tracks into a new folder."""
    from musicgen_ft.files import atomic_folder
    from musicgen_ft.processes import num_cores
    from musicgen_ft.synthesis.corpus import synthesize_corpus

    workers = config.workers or max(1, min(num_cores(), config.tracks // TRACKS_OF_A_WORKER))
    with (
        atomic_folder(config.out) as folder,
        progress_bar(total=config.tracks, desc="synthesize", unit="track") as bar,
    ):

        def progress(done: int, _: int) -> None:
            bar.update(done - bar.n)

        synthesize_corpus(
            folder,
            num_tracks=config.tracks,
            seed=config.seed,
            duration_s=config.duration_s,
            genres=config.genres or None,
            workers=workers,
            progress=progress,
        )
    minutes = config.tracks * config.duration_s / 60
    print(f"{config.tracks} tracks, {minutes:.1f} minutes of music with labels: {config.out}")


if __name__ == "__main__":
    run_recipe(SynthesizeConfig, main)
