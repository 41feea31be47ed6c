"""Makes the judge that comes with nano: it tells the genres of ``synthesize``, as they are and through nano's codec.

python train/nano_judge.py --out judge
"""

import tempfile
from pathlib import Path

from musicgen_ft.cli import run_command, run_recipe
from musicgen_ft.config.nano_judge import NanoJudgeConfig
from musicgen_ft.terminal import progress_bar


def main(config: NanoJudgeConfig) -> None:
    """Synthesizes what it learns from and what it is tested on; trains, tests and writes it."""
    import torch

    from musicgen_ft.audio import read
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.evaluation.genres import match_genres
    from musicgen_ft.evaluation.judge import NANO_JUDGE, labelled_tracks, train_judge
    from musicgen_ft.evaluation.reconstruction import reconstruct
    from musicgen_ft.files import refuse_used

    refuse_used(config.out)
    codec = open_base(config.base).codec()
    rate, channels = codec.spec.sample_rate, codec.spec.channels
    config.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.out) as scratch:
        learned, tested = (Path(scratch) / name for name in ("learned", "tested"))
        for number, (folder, count) in enumerate(((learned, config.tracks), (tested, config.test_tracks))):
            size = ["--tracks", str(count), "--duration_s", str(config.duration_s), "--seed", str(config.seed + number)]
            run_command("synthesize", "--out", str(folder), *size)
        tracks = labelled_tracks(learned)
        with progress_bar(total=len(tracks), desc="the judge listens", unit="track") as bar:
            judge = train_judge(learned, tracks, codec, clip_s=config.duration_s, progress=bar.update)
        asked, heard = [], []
        for track in labelled_tracks(tested):
            clip = torch.from_numpy(read(track.path, sample_rate=rate, channels=channels))
            asked.append(track.labels.genre or "")
            heard.append(judge.predict(reconstruct(codec, clip).waveform.numpy(), rate))
    found = match_genres(asked, heard)
    judge.save(config.out / NANO_JUDGE.name)
    print(f"right about {found.accuracy:.1%} of {found.clips} unseen clips that went through the codec")
    print(f"judge: {config.out / NANO_JUDGE.name}")


if __name__ == "__main__":
    run_recipe(NanoJudgeConfig, main)
