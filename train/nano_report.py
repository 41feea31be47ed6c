"""Says how good a base for synthesized music is, on music of seeds that no training saw: a table, JSON and a page.

python train/nano_report.py --out nano-report
python train/nano_report.py --out report --base nano-folder --card true --finetuning nano-finetuning
python train/nano_report.py --out report --clips 2 --judge_clips 5
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_ft.cli import run_recipe
from musicgen_ft.config.nano_report import NanoReportConfig
from musicgen_ft.terminal import progress_bar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from musicgen_ft.checkpoint.base import Base
    from musicgen_ft.codec import Codec
    from musicgen_ft.evaluation.genres import GenreClassifier
    from musicgen_ft.evaluation.held_out import Clip
    from musicgen_ft.evaluation.lead import LeadClassifier
    from musicgen_ft.evaluation.reconstruction import Reconstruction
    from musicgen_ft.evaluation.steering import Played
    from musicgen_ft.generation.generator import Generator
    from musicgen_ft.report.nano_page import GenreSound

    Floats = npt.NDArray[np.float64]
    Judges = tuple[GenreClassifier, GenreClassifier, LeadClassifier]


def main(config: NanoReportConfig) -> None:
    """Makes clips, trains the judges, measures the codec, the loss and what is generated; then tells of it."""
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.evaluation.nano_card import write_card
    from musicgen_ft.evaluation.nano_summary import summary_lines
    from musicgen_ft.evaluation.steering import CHANCE_OF_KEY, Played, steering
    from musicgen_ft.files import atomic_folder, refuse_used, write_json
    from musicgen_ft.generation.generator import Generator
    from musicgen_ft.report.nano_page import write_nano_page
    from musicgen_ft.synthesis.genres import genres_but

    refuse_used(config.out)
    trained = genres_but(config.held_out)
    base = open_base(config.base)
    refuse_no_card(config, base)
    finetuning = None if config.finetuning is None else read_finetuning(config.finetuning)
    generator = Generator.open(base, device=config.device)
    codec, spec = generator.codec, generator.codec.spec
    facts = model_facts(generator)  # before it plays: the weights may move then

    judges = train_judges(config, codec)
    clips = make_clips(config, codec, clips=config.clips, seed=config.seed + 1, told="unseen clips")
    back = through_codec(codec, clips, "codec")
    judged = judge_figures(config, judges, clips, back, codec)
    codec_found = codec_figures(clips, back, codec)
    asked = [place for place, clip in enumerate(clips) if clip.genre in trained]
    clips, back = [clips[place] for place in asked], [back[place] for place in asked]
    loss = losses(config, generator, clips, back)
    played, took_s = play(config, generator, clips)

    real = [Played(clip.waveform, None) for clip in clips]
    reconstructed = [Played(each.waveform.numpy(), each.codes) for each in back]
    found = {
        name: steering(clips, of_kind, judges[0], judges[2], spec)
        for name, of_kind in (("generated", played), ("reconstructed", reconstructed), ("real", real))
    }
    report = {
        "base": Path(base.name).name,
        "setting": setting_of(config, spec.card),
        "model": facts,
        "judge": judged,
        "codec": codec_found,
        "loss": loss,
        **found,
        "chance": {"genre": 1 / len(judges[0].classes), "key": CHANCE_OF_KEY},
        "speed": {
            "times_real_time": len(clips) * config.duration_s / took_s,
            "batch_size": config.batch_size,
            **device_facts(codec),
        },
        "finetuning": finetuning,
    }
    sounds = first_sounds(clips, back, played, judges, codec)
    with atomic_folder(config.out) as folder:
        write_json(folder / "report.json", report)
        write_nano_page(folder / "report.html", report, sounds)
    print("\n".join(summary_lines(report)))
    print(f"\npage: {config.out / 'report.html'}")
    if config.card:
        print(f"card: {write_card(base.folder, report)}")


def refuse_no_card(config: NanoReportConfig, base: "Base") -> None:
    """A card goes into a folder of the user's, or nano's: not into the hub's cache.

    Raises:
        UserError: if the base is neither.
    """
    from musicgen_ft.errors import UserError

    if config.card and config.base != "nano" and not Path(config.base).expanduser().is_dir():
        raise UserError(f"--card: {config.base} is a name, expected a folder, whose card is then written.")


def read_finetuning(folder: Path) -> dict[str, Any]:
    """What train/nano_finetuning.py has found.

    Raises:
        UserError: if it has not, in this folder.
    """
    from musicgen_ft.errors import UserError
    from musicgen_ft.evaluation.nano_summary import FINETUNING_FILE
    from musicgen_ft.files import read_json

    path = folder / FINETUNING_FILE
    if not path.is_file():
        raise UserError(f"--finetuning: found no {path}, expected the folder of a finished train/nano_finetuning.py.")
    found: dict[str, Any] = read_json(path)
    return found


# ---- clips -----------------------------------------------------------------------------------------------------------


def make_clips(config: NanoReportConfig, codec: "Codec", *, clips: int, seed: int, told: str) -> "list[Clip]":
    """Clips of all genres that no training saw."""
    from musicgen_ft.evaluation.held_out import render_clips
    from musicgen_ft.synthesis.genres import GENRES

    with progress_bar(total=clips * len(GENRES), desc=told, unit="clip") as bar:
        return render_clips(
            tuple(GENRES),
            seed=seed,
            clips=clips,
            duration_s=config.duration_s,
            sample_rate=codec.spec.sample_rate,
            channels=codec.spec.channels,
            progress=bar.update,
        )


def through_codec(codec: "Codec", clips: "Sequence[Clip]", told: str) -> "list[Reconstruction]":
    """What comes back of each clip."""
    import torch

    from musicgen_ft.evaluation.reconstruction import reconstruct

    found = []
    with progress_bar(total=len(clips), desc=told, unit="clip") as bar:
        for clip in clips:
            found.append(reconstruct(codec, torch.from_numpy(clip.waveform)))
            bar.update()
    return found


def features_of(waveforms: "Sequence[npt.NDArray[np.float32]]", codec: "Codec") -> "Floats":
    """Features of clips, [N, features]."""
    import numpy as np

    from musicgen_ft.evaluation.clip_features import clip_features

    return np.stack([clip_features(waveform, codec.spec.sample_rate) for waveform in waveforms])


# ---- the judges ------------------------------------------------------------------------------------------------------


def train_judges(config: NanoReportConfig, codec: "Codec") -> "Judges":
    """Judges of genres, trained on real and reconstructed clips and on real ones alone, and one of the leads."""
    import numpy as np

    from musicgen_ft.evaluation.genres import GenreClassifier
    from musicgen_ft.evaluation.lead import LeadClassifier

    clips = make_clips(config, codec, clips=config.judge_clips, seed=config.seed, told="the judge's clips")
    genres, leads = [clip.genre for clip in clips], [clip.lead for clip in clips]
    real = features_of([clip.waveform for clip in clips], codec)
    back = features_of([each.waveform.numpy() for each in through_codec(codec, clips, "the judge's codec")], codec)
    both = np.concatenate([real, back])
    return (
        GenreClassifier(both, genres * 2),
        GenreClassifier(real, genres),
        LeadClassifier(both, genres * 2, leads * 2),
    )


def judge_figures(
    config: NanoReportConfig,
    judges: "Judges",
    clips: "Sequence[Clip]",
    back: "Sequence[Reconstruction]",
    codec: "Codec",
) -> dict[str, Any]:
    """How often the judges of genres are right about unseen clips of all genres, as they are and through the codec."""
    from musicgen_ft.evaluation.genres import match_genres
    from musicgen_ft.synthesis.genres import GENRES

    genres = [clip.genre for clip in clips]
    kinds = {
        "real": features_of([clip.waveform for clip in clips], codec),
        "reconstructed": features_of([each.waveform.numpy() for each in back], codec),
    }
    of_both, of_real = (
        {name: match_genres(genres, judge.predict_features(features)).accuracy for name, features in kinds.items()}
        for judge in judges[:2]
    )
    train_clips = config.judge_clips * len(GENRES)
    return {"train_clips": train_clips, "test_clips": len(clips), **of_both, "real_only": of_real}


# ---- figures ---------------------------------------------------------------------------------------------------------


def codec_figures(clips: "Sequence[Clip]", back: "Sequence[Reconstruction]", codec: "Codec") -> dict[str, Any]:
    """What the codec loses, and how it uses its codebooks."""
    import numpy as np

    from musicgen_ft.evaluation.reconstruction import codebook_use

    def means(found: "Sequence[Reconstruction]") -> dict[str, float]:
        return {name: float(np.mean([getattr(each, name) for each in found])) for name in ("log_mel", "si_sdr_db")}

    genres = dict.fromkeys(clip.genre for clip in clips)
    of_genre = {
        genre: means([each for clip, each in zip(clips, back, strict=True) if clip.genre == genre]) for genre in genres
    }
    used = codebook_use([each.codes for each in back], codec.spec.card)
    return {**means(back), "per_genre": of_genre, "codebooks": [asdict(use) for use in used]}


def losses(
    config: NanoReportConfig, generator: "Generator", clips: "Sequence[Clip]", back: "Sequence[Reconstruction]"
) -> dict[str, list[float]]:
    """Loss of each codebook with the clip's own caption, with that of a clip half the list away, and with none."""
    from musicgen_ft.evaluation.caption_loss import caption_loss

    codes = [each.codes for each in back]
    own: list[str | None] = [clip.labels.description for clip in clips]
    half = len(own) // 2
    captions: dict[str, list[str | None]] = {
        "own_caption": own,
        "other_caption": own[half:] + own[:half],
        "no_caption": [None] * len(own),
    }
    return {
        name: caption_loss(generator.lm, generator.text_encoder, codes, words, batch_size=config.batch_size)
        for name, words in captions.items()
    }


def play(config: NanoReportConfig, generator: "Generator", clips: "Sequence[Clip]") -> "tuple[list[Played], float]":
    """A clip for each caption, and the seconds that all took."""
    from musicgen_ft.evaluation.steering import Played
    from musicgen_ft.generation.options import Request
    from musicgen_ft.generation.sampling import Sampling

    sampling = Sampling(top_k=config.top_k, temperature=config.temperature)
    requests = [
        Request(
            prompt=clip.labels.description,
            duration_s=config.duration_s,
            seed=config.seed + number,
            sampling=sampling,
            cfg_coef=config.cfg_coef,
        )
        for number, clip in enumerate(clips)
    ]
    played: list[Played] = []
    began = time.perf_counter()
    with progress_bar(total=len(requests), desc="generate", unit="clip") as bar:
        for start in range(0, len(requests), config.batch_size):
            batch = requests[start : start + config.batch_size]
            for codes in generator.codes(batch):
                waveform = generator.codec.decode(codes[None])[0].cpu().numpy()
                played.append(Played(waveform, codes.cpu()))
            bar.update(len(batch))
    return played, time.perf_counter() - began


def first_sounds(
    clips: "Sequence[Clip]",
    back: "Sequence[Reconstruction]",
    played: "Sequence[Played]",
    judges: "Judges",
    codec: "Codec",
) -> "list[GenreSound]":
    """The first clip of each genre."""
    from musicgen_ft.evaluation.tempo import hear_clip
    from musicgen_ft.report.nano_page import GenreSound

    rate = codec.spec.sample_rate
    sounds: dict[str, GenreSound] = {}
    for clip, each, of_caption in zip(clips, back, played, strict=True):
        if clip.genre in sounds:
            continue
        heard = hear_clip(of_caption.waveform, rate)
        tempo = "no steady beat" if heard.bpm is None else f"{heard.bpm:.0f} BPM"
        key = "no clear key" if heard.key is None else heard.key.capitalize()
        sounds[clip.genre] = GenreSound(
            genre=clip.genre,
            caption=clip.labels.description,
            sample_rate=rate,
            real=clip.waveform,
            reconstructed=each.waveform.numpy(),
            generated=of_caption.waveform,
            facts=(
                f"{clip.labels.bpm} BPM · {clip.labels.key}",
                f"log-mel distance {each.log_mel:.2f} · SI-SDR {each.si_sdr_db:.1f} dB",
                f"heard as {judges[0].predict(of_caption.waveform, rate)} · {tempo} · {key}",
            ),
        )
    return list(sounds.values())


# ---- facts -----------------------------------------------------------------------------------------------------------


def setting_of(config: NanoReportConfig, card: int) -> dict[str, Any]:
    """How it was measured, without anybody's folders."""
    from musicgen_ft.generation.sampling import Sampling

    names = ("held_out", "clips", "judge_clips", "duration_s", "seed")
    sampling = {name: getattr(config, name) for name in ("cfg_coef", "temperature")}
    sampling |= {"top_k": Sampling(top_k=config.top_k).k_of(card)}
    return {name: getattr(config, name) for name in names} | {"sampling": sampling}


def model_facts(generator: "Generator") -> dict[str, Any]:
    """Sizes of its parts."""
    import math

    from torch import nn

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    spec = generator.codec.spec
    return {
        "lm_parameters": size(generator.lm),
        "codec_parameters": size(generator.codec.model),
        "text_parameters": size(generator.text_encoder.encoder),
        "n_q": spec.n_q,
        "card": spec.card,
        "sample_rate": spec.sample_rate,
        "frame_rate": spec.frame_rate,
        "channels": spec.channels,
        "kbps": spec.n_q * math.log2(spec.card) * spec.frame_rate / 1000,
    }


def device_facts(codec: "Codec") -> dict[str, Any]:
    """What it ran on."""
    import torch

    return {"device": codec.device.type, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    run_recipe(NanoReportConfig, main)
