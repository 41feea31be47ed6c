"""Says how good a base for synthesized music is, on music of seeds that no training saw: a table, JSON and a page.

python train/nano_report.py --out nano-report
python train/nano_report.py --out report --base nano-folder --card true
python train/nano_report.py --out report --clips 2 --judge_clips 5
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_ft.cli import run_recipe
from musicgen_ft.config import NanoReportConfig
from musicgen_ft.terminal import progress_bar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from musicgen_ft.checkpoint.base import Base
    from musicgen_ft.codec import Codec
    from musicgen_ft.corpus.auto_labels import Heard
    from musicgen_ft.evaluation.genres import GenreClassifier
    from musicgen_ft.evaluation.held_out import Clip
    from musicgen_ft.evaluation.lead import LeadClassifier
    from musicgen_ft.evaluation.reconstruction import Reconstruction
    from musicgen_ft.generation.collapse import Collapse
    from musicgen_ft.generation.generator import Generator
    from musicgen_ft.report.nano_page import GenreSound

    Floats = npt.NDArray[np.float64]


def main(config: NanoReportConfig) -> None:
    """Makes clips, trains the judges, measures the codec, the loss and what is generated; then tells of it."""
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.evaluation.nano_card import write_card
    from musicgen_ft.evaluation.nano_summary import summary_lines
    from musicgen_ft.files import atomic_folder, refuse_used, write_json
    from musicgen_ft.generation.generator import Generator
    from musicgen_ft.report.nano_page import write_nano_page

    refuse_used(config.out)
    trained = trained_genres(config)
    base = open_base(config.base)
    refuse_no_card(config, base)
    generator = Generator.open(base, device=config.device)
    codec = generator.codec
    facts = model_facts(generator)  # before it plays: the weights may move then

    judges, judged = train_judges(config, codec)
    clips = make_clips(config, codec, clips=config.clips, seed=config.seed + 1, told="unseen clips")
    back = through_codec(codec, clips, "codec")
    features = features_of([clip.waveform for clip in clips], codec)
    features_back = features_of([each.waveform.numpy() for each in back], codec)
    asked = [place for place, clip in enumerate(clips) if clip.genre in trained]
    loss = losses(config, generator, [clips[place] for place in asked], [back[place] for place in asked])

    waveforms, collapses, took_s = play(config, generator, [clips[place].labels.description for place in asked])
    features_played = features_of(waveforms, codec)
    steered, heard_genres, heard = steering(
        [clips[place] for place in asked], waveforms, features_played, features[asked], judges, codec.spec.sample_rate
    )
    report = {
        "base": base.name if config.base == "nano" else Path(base.name).name,
        "setting": setting_of(config),
        "model": facts,
        "judge": judged | judge_accuracy(judges, clips, features, features_back),
        "codec": codec_figures(clips, back, codec),
        "loss": loss,
        **steered,
        "collapse": collapse_figures(collapses, [clips[i] for i in asked], [back[i] for i in asked], codec),
        "speed": {
            "times_real_time": sum(waveform.shape[1] for waveform in waveforms) / codec.spec.sample_rate / took_s,
            "batch_size": config.batch_size,
            **device_facts(codec),
        },
    }
    sounds = first_sounds(
        [clips[i] for i in asked], [back[i] for i in asked], waveforms, heard_genres, heard, codec.spec.sample_rate
    )
    with atomic_folder(config.out) as folder:
        write_json(folder / "report.json", report)
        write_nano_page(folder / "report.html", report, sounds)
    print("\n".join(summary_lines(report)))
    print(f"\npage: {config.out / 'report.html'}")
    if config.card:
        print(f"card: {write_card(base.folder, report)}")


def trained_genres(config: NanoReportConfig) -> tuple[str, ...]:
    """The genres that the base knows.

    Raises:
        UserError: if none is left, or one to leave out is not known.
    """
    from musicgen_ft.errors import UserError
    from musicgen_ft.synthesis.genres import GENRES, find_genre

    for name in config.held_out:
        find_genre(name)
    left = tuple(genre for genre in GENRES if genre not in config.held_out)
    if not left:
        raise UserError("held_out names every genre: nothing is left to ask for. Leave some out.")
    return left


def refuse_no_card(config: NanoReportConfig, base: "Base") -> None:
    """A card goes into a folder of the user's, or nano's: not into the hub's cache.

    Raises:
        UserError: if the base is neither.
    """
    from musicgen_ft.errors import UserError

    if config.card and config.base != "nano" and not Path(config.base).expanduser().is_dir():
        raise UserError(f"--card: {config.base} is a name, expected a folder, whose card is then written.")


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


def train_judges(
    config: NanoReportConfig, codec: "Codec"
) -> "tuple[tuple[GenreClassifier, GenreClassifier, LeadClassifier], dict[str, Any]]":
    """Judges of genres, trained on real and reconstructed clips and on real ones alone, and one of the leads."""
    import numpy as np

    from musicgen_ft.evaluation.genres import GenreClassifier
    from musicgen_ft.evaluation.lead import LeadClassifier

    clips = make_clips(config, codec, clips=config.judge_clips, seed=config.seed, told="the judge's clips")
    genres, leads = [clip.genre for clip in clips], [clip.lead for clip in clips]
    real = features_of([clip.waveform for clip in clips], codec)
    back = features_of([each.waveform.numpy() for each in through_codec(codec, clips, "the judge's codec")], codec)
    both = np.concatenate([real, back])
    judges = (
        GenreClassifier(both, genres * 2),
        GenreClassifier(real, genres),
        LeadClassifier(both, genres * 2, leads * 2),
    )
    return judges, {"train_clips": len(clips)}


def judge_accuracy(
    judges: "tuple[GenreClassifier, GenreClassifier, LeadClassifier]",
    clips: "Sequence[Clip]",
    real: "Floats",
    back: "Floats",
) -> dict[str, Any]:
    """How often the judges of genres are right about unseen clips of all genres, as they are and through the codec."""
    from musicgen_ft.evaluation.genres import match_genres

    genres = [clip.genre for clip in clips]

    def accuracies(judge: "GenreClassifier") -> dict[str, float]:
        return {
            name: match_genres(genres, judge.predict_features(features)).accuracy
            for name, features in (("real", real), ("reconstructed", back))
        }

    return {"test_clips": len(clips), **accuracies(judges[0]), "real_only": accuracies(judges[1])}


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
    captions = {"own_caption": own, "other_caption": own[half:] + own[:half], "no_caption": [None] * len(own)}
    return {
        name: caption_loss(generator.lm, generator.text_encoder, codes, words, batch_size=config.batch_size)
        for name, words in captions.items()
    }


def play(
    config: NanoReportConfig, generator: "Generator", captions: Sequence[str]
) -> "tuple[list[npt.NDArray[np.float32]], list[Collapse], float]":
    """A clip for each caption, what is wrong with it, and the seconds that all took."""
    from musicgen_ft.generation.collapse import LoopWatcher, measure
    from musicgen_ft.generation.options import Request
    from musicgen_ft.generation.sampling import Sampling

    sampling = Sampling(top_k=config.top_k, temperature=config.temperature)
    requests = [
        Request(
            prompt=caption,
            duration_s=config.duration_s,
            seed=config.seed + number,
            sampling=sampling,
            cfg_coef=config.cfg_coef,
        )
        for number, caption in enumerate(captions)
    ]
    waveforms, collapses = [], []
    generator.engine  # noqa: B018  # laid out before the clock starts
    began = time.perf_counter()
    with progress_bar(total=len(requests), desc="generate", unit="clip") as bar:
        for start in range(0, len(requests), config.batch_size):
            batch = requests[start : start + config.batch_size]
            watchers = [LoopWatcher(generator.codec.spec.frame_rate) for _ in batch]
            for waveform, watcher in zip(generator.play(batch, watchers=watchers), watchers, strict=True):
                waveforms.append(waveform.numpy())
                collapses.append(measure(waveforms[-1], generator.sample_rate, loops=watcher.found))
            bar.update(len(batch))
    return waveforms, collapses, time.perf_counter() - began


def steering(
    clips: "Sequence[Clip]",
    waveforms: "Sequence[npt.NDArray[np.float32]]",
    played: "Floats",
    real: "Floats",
    judges: "tuple[GenreClassifier, GenreClassifier, LeadClassifier]",
    sample_rate: int,
) -> "tuple[dict[str, Any], list[str], list[Heard]]":
    """Whether generated clips are what their captions say, and the same of the real clips that have these captions."""
    import numpy as np

    from musicgen_ft.evaluation.genres import match_genres
    from musicgen_ft.evaluation.tempo import hear_clip, match_tempi, within_by_chance

    judge, _, lead_judge = judges
    genres, leads = [clip.genre for clip in clips], [clip.lead for clip in clips]
    tempi, keys = [float(clip.labels.bpm) for clip in clips], [clip.labels.key.lower() for clip in clips]
    heard_genres = judge.predict_features(played)
    heard = [hear_clip(waveform, sample_rate) for waveform in waveforms]
    heard_real = [hear_clip(clip.waveform, sample_rate) for clip in clips]
    bpm = [each.bpm for each in heard]

    def same_key(found: "Sequence[Heard]") -> float:
        return float(np.mean([each.key == key for each, key in zip(found, keys, strict=True)]))

    found = {
        "genres": {
            "generated": asdict(match_genres(genres, heard_genres)),
            "real": asdict(match_genres(genres, judge.predict_features(real))),
            "chance": 1 / len(judge.classes),
        },
        "tempo": {
            "generated": asdict(match_tempi(bpm, tempi)),
            "real": asdict(match_tempi([each.bpm for each in heard_real], tempi)),
            "other_prompt": within_by_chance(bpm, tempi, genres),
        },
        "key": {"generated": same_key(heard), "real": same_key(heard_real), "chance": 1 / 24},
        "lead": {
            "generated": asdict(lead_judge.match(played, genres, leads)),
            "real": asdict(lead_judge.match(real, genres, leads)),
        },
    }
    return found, heard_genres, heard


def collapse_figures(
    collapses: "Sequence[Collapse]", clips: "Sequence[Clip]", back: "Sequence[Reconstruction]", codec: "Codec"
) -> dict[str, Any]:
    """Shares that fall silent, and that repeat their codes exactly; of real clips the codes are the codec's."""
    import numpy as np

    from musicgen_ft.generation.collapse import find_loops, measure

    def shares(found: "Sequence[Collapse]") -> dict[str, float]:
        looping = [bool(each.loops) for each in found]
        silent = [replace(each, loops=()).is_found for each in found]
        return {"silent": float(np.mean(silent)), "looping": float(np.mean(looping))}

    spec = codec.spec
    real = [
        measure(clip.waveform, spec.sample_rate, loops=find_loops(each.codes, spec.frame_rate))
        for clip, each in zip(clips, back, strict=True)
    ]
    return {"generated": shares(collapses), "real": shares(real)}


# ---- facts -----------------------------------------------------------------------------------------------------------


def setting_of(config: NanoReportConfig) -> dict[str, Any]:
    """How it was measured, without anybody's folders."""
    names = ("held_out", "clips", "judge_clips", "duration_s", "seed")
    sampling = {name: getattr(config, name) for name in ("cfg_coef", "top_k", "temperature")}
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


def first_sounds(
    clips: "Sequence[Clip]",
    back: "Sequence[Reconstruction]",
    waveforms: "Sequence[npt.NDArray[np.float32]]",
    heard_genres: Sequence[str],
    heard: "Sequence[Heard]",
    sample_rate: int,
) -> "list[GenreSound]":
    """The first clip of each genre."""
    from musicgen_ft.report.nano_page import GenreSound

    sounds: dict[str, GenreSound] = {}
    for clip, each, waveform, genre, found in zip(clips, back, waveforms, heard_genres, heard, strict=True):
        if clip.genre in sounds:
            continue
        tempo = "no steady beat" if found.bpm is None else f"{found.bpm:.0f} BPM"
        sounds[clip.genre] = GenreSound(
            genre=clip.genre,
            caption=clip.labels.description,
            sample_rate=sample_rate,
            real=clip.waveform,
            reconstructed=each.waveform.numpy(),
            generated=waveform,
            facts=(
                f"{clip.labels.bpm} BPM · {clip.labels.key}",
                f"log-mel distance {each.log_mel:.2f} · SI-SDR {each.si_sdr_db:.1f} dB",
                f"heard as {genre} · {tempo} · {found.key or 'no clear key'}",
            ),
        )
    return list(sounds.values())


if __name__ == "__main__":
    run_recipe(NanoReportConfig, main)
