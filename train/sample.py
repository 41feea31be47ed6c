"""Plays prompts into WAV files, each with a JSON beside it that says how it was made.

musicgen-ft sample generator --prompt "slow waltz with strings" --prompt "techno at 128 bpm" --out wavs
musicgen-ft sample facebook/musicgen-small --prompt "lofi hip hop" --out wavs --duration_s 20 --seed 7
musicgen-ft sample generator --prompt "chiptune" --out wavs --engine audiocraft
musicgen-ft sample facebook/musicgen-melody --prompt "string quartet" --melody whistled.wav --out wavs
musicgen-ft sample facebook/musicgen-small --adapter lofi --adapter waltz=0.5 --prompt "lofi waltz" --out wavs
musicgen-ft sample generator --prompts thousands.jsonl --out wavs --batch_size 16
musicgen-ft sample generator --prompt "ambient drone" --out wavs --duration_s 120 --retry_silent 2
musicgen-ft sample generator --prompt "waltz" --audio_prompt beginning.wav --negative_prompt "drums" --out wavs
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from musicgen_ft.cli import run_recipe
from musicgen_ft.config.plain import to_plain
from musicgen_ft.config.sample import SampleConfig
from musicgen_ft.terminal import progress_bar, slug

if TYPE_CHECKING:
    from torch import Tensor

    from musicgen_ft.checkpoint.base import Base
    from musicgen_ft.generation.options import Melody, Request
    from musicgen_ft.generation.prompts import Prompt
    from musicgen_ft.generation.sampling import Sampling
    from musicgen_ft.generation.takes import Take
    from musicgen_ft.model.lm import LMConfig
    from musicgen_ft.peers.engines import Engine

LONG_PROMPT = 200
"""Words: far more than a description of MusicGen's training has."""


def main(config: SampleConfig) -> None:
    """Opens the generator, plays batch by batch, writes each piece as it is done; what is there already stays."""
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.devices import resolve_device
    from musicgen_ft.errors import UserError
    from musicgen_ft.files import write_json
    from musicgen_ft.generation.adapters import parse_adapters
    from musicgen_ft.generation.prompts import RECORD_FILE, Prompt, check_folder, read_prompts
    from musicgen_ft.generation.sampling import Sampling
    from musicgen_ft.peers.engines import open_engine

    prompts = [Prompt(prompt=text) for text in config.prompt]
    prompts += [] if config.prompts is None else read_prompts(config.prompts)
    if config.engine != "native" and any((p.negative_prompt, p.duration_s, p.cfg_coef) != (None,) * 3 for p in prompts):
        raise UserError(f"--prompts: pieces with options of their own are for --engine native, found {config.engine}.")
    if config.cfg_coef_beta is not None and config.melody is None:
        raise UserError("cfg_coef_beta sets the prompt against a melody, found none. Give --melody FILE.")
    adapters = parse_adapters(config.adapter)
    record = check_folder(config.out, to_plain(config), prompts, is_resumable=config.prompts is not None)
    pieces = list(enumerate(prompts))
    paths = {number: place(config.out, number, prompt, len(pieces)) for number, prompt in pieces}
    left = [(number, prompt) for number, prompt in pieces if not paths[number].with_suffix(".json").is_file()]
    if len(left) < len(pieces):
        print(f"{len(pieces) - len(left)} of {len(pieces)} pieces are there already: {config.out}")
    if not left:
        return
    base = open_base(config.generator)
    melody = None if config.melody is None else read_melody(config.melody, base.lm_config, config.generator)
    beginning = None if config.audio_prompt is None else read_beginning(config.audio_prompt, base)
    device = resolve_device(config.device)
    engine = open_engine(config.engine, base, device=device, dtype=config.dtype, adapters=adapters)
    rule = Sampling(top_k=config.top_k, top_p=config.top_p, temperature=config.temperature)
    rule = dataclasses.replace(rule, top_k=rule.k_of(base.lm_config.card))
    requests = {number: request_of(config, number, prompt, melody, beginning, rule) for number, prompt in left}
    for start in range(0, len(left), config.batch_size):
        numbers = [number for number, _ in left[start : start + config.batch_size]]
        told = f"sample {numbers[-1] + 1}/{len(pieces)}"
        takes = play(config, engine, {number: requests[number] for number in numbers}, told)
        if config.prompts is not None:
            write_json(config.out / RECORD_FILE, record)  # only now: a mistake leaves nothing behind
        for number in numbers:
            write(config, engine.sample_rate, requests[number], takes[number], paths[number])


def request_of(
    config: SampleConfig,
    number: int,
    prompt: "Prompt",
    melody: "Melody | None",
    beginning: "Tensor | None",
    sampling: "Sampling",
) -> "Request":
    """What the engine is to play."""
    from musicgen_ft.generation.options import Request

    return Request(
        prompt=prompt.prompt,
        duration_s=config.duration_s if prompt.duration_s is None else prompt.duration_s,
        seed=config.seed + number if prompt.seed is None else prompt.seed,
        sampling=sampling,
        cfg_coef=config.cfg_coef if prompt.cfg_coef is None else prompt.cfg_coef,
        cfg_coef_beta=config.cfg_coef_beta,
        negative_prompt=config.negative_prompt if prompt.negative_prompt is None else prompt.negative_prompt,
        melody=melody,
        audio_prompt=beginning,
    )


def play(config: SampleConfig, engine: "Engine", requests: "dict[int, Request]", told: str) -> "dict[int, list[Take]]":
    """All takes of a batch, by the numbers of its pieces."""
    from musicgen_ft.generation.collapse import measure
    from musicgen_ft.generation.takes import Take, play_takes
    from musicgen_ft.generation.watch import PieceWatch

    with progress_bar(total=1, desc=told, unit="step") as bar:

        def progress(done: int, of: int) -> None:
            bar.total, bar.n = of, done  # called while its own bar is open
            bar.refresh()

        def once(pieces: Sequence[int], seeds: Sequence[int], *, is_last: bool) -> list[Take]:
            batch = [dataclasses.replace(requests[n], seed=seed) for n, seed in zip(pieces, seeds, strict=True)]
            watches = [PieceWatch(engine.frame_rate, breaks_off=not is_last) for _ in pieces]
            waveforms = engine.play(
                batch, stride_s=config.stride_s, two_step_cfg=config.two_step_cfg, progress=progress, watches=watches
            )
            return [
                Take(
                    seed,
                    waveform,
                    measure(waveform.numpy(), engine.sample_rate, loops=watch.loops),
                    watch.broken_off_s,
                )
                for seed, waveform, watch in zip(seeds, waveforms, watches, strict=True)
            ]

        seeds = {number: request.seed for number, request in requests.items()}
        return play_takes(once, seeds, retries=config.retry_silent)


def write(config: SampleConfig, sample_rate: int, request: "Request", takes: "list[Take]", path: Path) -> None:
    """The best take as a WAV, and beside it, last, how it was made; what is odd about it is said aloud."""
    from musicgen_ft import __version__
    from musicgen_ft.audio import normalize_loudness, write_wav
    from musicgen_ft.files import write_json
    from musicgen_ft.generation.adapters import parse_adapters
    from musicgen_ft.generation.takes import best_take

    prompt, take, piece = request.prompt or "", best_take(takes), f"piece {int(path.name.partition('_')[0])}"
    if not prompt.strip():
        print(f"{piece}: the prompt is empty, played without a condition")
    if (num_words := len(prompt.split())) > LONG_PROMPT:
        print(f"{piece}: all {num_words} words of the prompt were read; the base has learned from few")
    for each in takes:
        if each.has_failed:
            print(f"{piece}: with seed {each.seed} it {each}")
    write_wav(path, normalize_loudness(take.waveform, sample_rate), sample_rate)
    how = {name: value for name, value in to_plain(config).items() if name not in ("prompts", "batch_size")}
    how |= {"prompt": prompt, "seed": take.seed, "duration_s": request.duration_s, "cfg_coef": request.cfg_coef}
    how["top_k"] = request.sampling.top_k
    how |= {"negative_prompt": request.negative_prompt or "", "sample_rate": sample_rate}
    how["adapter"] = {str(folder): strength for folder, strength in parse_adapters(config.adapter).items()}
    how |= {"seeds_tried": [each.seed for each in takes], "broken_off_s": [each.broken_off_s for each in takes]}
    how["collapse"] = take.collapse.to_dict()
    write_json(path.with_suffix(".json"), {**how, "toolkit_version": __version__})
    print(path)


def place(out: Path, number: int, prompt: "Prompt", num_pieces: int) -> Path:
    """Where a piece goes; the JSON beside it is written last."""
    return out / f"{number:0{max(3, len(str(num_pieces - 1)))}d}_{slug(prompt.prompt)}.wav"


def read_melody(path: Path, config: "LMConfig", generator: str) -> "Melody":
    """The file in mono at the rate of the generator's chroma."""
    from musicgen_ft.audio import AudioError, read
    from musicgen_ft.corpus.quality import SILENCE_DB, mean_square_db
    from musicgen_ft.errors import UserError

    if config.chroma is None:
        raise UserError(
            f"--melody {path}: {generator} takes no melody. Use facebook/musicgen-melody, or a generator made from it."
        )
    try:
        samples: Melody = read(path, sample_rate=config.chroma.sample_rate, channels=1)[0]
    except AudioError as error:
        raise UserError(f"--melody {error}. Give a file that plays.") from error
    if mean_square_db(float((samples.astype("float64") ** 2).mean())) < SILENCE_DB:
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
