"""The page of ``nano``: its figures; of each genre a real, a reconstructed and a generated clip to see and to hear."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from musicgen_ft.evaluation.nano_summary import (
    CODEBOOK_HEADER,
    HEADER,
    MAX_SILENT,
    MIN_GENRE_ACCURACY,
    Report,
    codebook_figures,
    figures,
    finetuning_figures,
    finetuning_header,
    finetuning_verdict,
    plain,
    share,
)
from musicgen_ft.report.page import (
    Section,
    Tile,
    card,
    flow,
    grid,
    heading,
    join,
    paragraph,
    render_page,
    table,
    tiles,
    write_page,
)
from musicgen_ft.report.players import player


@dataclass(frozen=True, kw_only=True)
class GenreSound:
    """Three clips of one genre."""

    genre: str
    """Its name."""
    caption: str
    """Of the real clip, and the prompt of the generated one."""
    sample_rate: int
    """Of all three, in Hz."""
    real: npt.NDArray[np.float32]
    """float32 [C, L], of the corpus."""
    reconstructed: npt.NDArray[np.float32]
    """float32 [C, L], what the codec makes of it."""
    generated: npt.NDArray[np.float32]
    """float32 [C, L], played from the caption."""
    facts: Sequence[str]
    """A line for each: what was measured of it."""


def write_nano_page(path: Path, report: Report, sounds: Sequence[GenreSound]) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: the HTML file.
        report: the value of ``report.json``.
        sounds: one for each genre.
    """
    sections = [
        Section(
            anchor="figures",
            title="Figures",
            lead="Of generated clips, and of the real clips whose captions they were played from.",
            body=card("All clips together", table("Figures of all clips", HEADER, figures(report))),
        ),
        _genres(report),
        *_finetuning(report["finetuning"]),
        _codec(report),
        _listen(sounds),
    ]
    page = render_page(
        title=report["base"], kicker="Report of a base", lead=_lead(report), header=_header(report), sections=sections
    )
    write_page(path, page)


def _lead(report: Report) -> str:
    setting, judge = report["setting"], report["judge"]
    asked = setting["clips"] * len(report["generated"]["genres"]["per_genre"])
    return (
        f"{asked} clips of {setting['duration_s']:g} s played from captions of unseen tracks, and "
        f"{judge['test_clips']} unseen clips through the codec. Music of seeds from {setting['seed']} on: no training "
        "saw it."
    )


def _header(report: Report) -> Markup:
    generated, codec, loss = report["generated"], report["codec"], report["loss"]
    mean = sum(loss["own_caption"]) / len(loss["own_caption"])
    return tiles(
        [
            Tile(
                value=share(generated["genres"]["accuracy"]),
                label="Genre as prompted",
                note=f"wanted: {share(MIN_GENRE_ACCURACY)}; chance {share(report['chance']['genre'])}",
            ),
            Tile(value=share(generated["tempo"]["median_error"]), label="Tempo error", note="median"),
            Tile(value=share(generated["silent"]), label="Silent", note=f"wanted: under {share(MAX_SILENT)}"),
            Tile(value=plain(codec["log_mel"], digits=2), label="Log-mel distance", note="nepers, of the codec"),
            Tile(value=plain(codec["si_sdr_db"], "dB", digits=2), label="SI-SDR", note="of the codec"),
            Tile(value=f"{mean:.2f}", label="Loss", note=f"nats, mean of {len(loss['own_caption'])} codebooks"),
        ]
    )


def _genres(report: Report) -> Section:
    match = report["generated"]["genres"]
    genres = list(match["per_genre"])
    heard = [*genres, *sorted({name for row in match["confusion"].values() for name in row} - set(genres))]
    rows = [
        [
            genre,
            *(_cell(match["confusion"][genre].get(name, 0), name == genre) for name in heard),
            share(match["per_genre"][genre]),
        ]
        for genre in genres
    ]
    return Section(
        anchor="genres",
        title="Genres",
        lead="A row for each genre that was prompted, a column for what the judge heard. It was trained on real clips "
        "and on what the codec makes of them; it never saw a generated one.",
        body=card(
            "Prompted and heard", table("Clips by prompted and heard genre", ["prompted", *heard, "as prompted"], rows)
        ),
    )


def _cell(count: int, is_right: bool) -> str | Markup:
    if not count:
        return "·"
    return Markup("<strong>{}</strong>").format(count) if is_right else str(count)


def _codec(report: Report) -> Section:
    rows = [
        [genre, plain(found["log_mel"], "nepers"), plain(found["si_sdr_db"], "dB")]
        for genre, found in report["codec"]["per_genre"].items()
    ]
    note = f"perplexity: of {report['model']['card']} entries, if all used were as frequent"
    return Section(
        anchor="codec",
        title="Codec and loss",
        lead="How near the reconstruction comes. Noise is never near in SI-SDR, which compares wave forms.",
        body=flow(
            [
                card("By genre", table("Codec by genre", ["", "Log-mel distance", "SI-SDR"], rows)),
                card(
                    "By codebook",
                    table("Use and loss of each codebook", CODEBOOK_HEADER, codebook_figures(report)),
                    note=note,
                ),
            ],
            width_rem=24,
        ),
    )


def _finetuning(finetuning: Report | None) -> list[Section]:
    if finetuning is None:
        return []
    header, rows = finetuning_header(finetuning), finetuning_figures(finetuning)
    return [
        Section(
            anchor="finetuning",
            title="Fine-tuning",
            lead=f"What became of it by fine-tuning on {finetuning['genre']}, which it had never heard.",
            body=card(
                "Base → fine-tuned",
                table("Each way of fine-tuning", header, rows),
                note=finetuning_verdict(finetuning),
            ),
        )
    ]


def _listen(sounds: Sequence[GenreSound]) -> Section:
    blocks = []
    for sound in sounds:
        cards = [
            player(title=title, samples=samples, sample_rate=sound.sample_rate, facts=facts)
            for title, samples, facts in zip(
                ("Real", "Through the codec", "Generated"),
                (sound.real, sound.reconstructed, sound.generated),
                sound.facts,
                strict=True,
            )
        ]
        blocks.append(join([heading(sound.genre.capitalize(), sound.caption), grid(cards, width_rem=19)]))
    return Section(
        anchor="listen",
        title="Listen",
        lead="The first clip of each genre, none chosen. A click on a picture plays from there.",
        body=join(blocks) if blocks else paragraph("There is none.", tone="muted"),
    )
