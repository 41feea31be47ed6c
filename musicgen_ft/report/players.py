"""Players: an excerpt as a small MP3 in the page, under its waveform and spectrogram."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from musicgen_ft.pictures import height_of, spectrogram_uri
from musicgen_ft.report.charts import waveform
from musicgen_ft.report.page import join

MAX_S = 20.0  # 160 kB in a page
BIT_RATE = 64_000  # per second of mono or of joint stereo: to recognise a track by, not to judge a codec
FADE_IN_S, FADE_OUT_S = 0.02, 0.3
MP3_RATES = (32_000, 44_100, 48_000)

_CARD = Markup(
    '<article class="player card"><header><h4>{title}</h4>{badge}</header><p class="note">{facts}</p>{notes}'
    '<div class="pictures"><div class="picture wave-box" role="img" aria-label="Waveform of the excerpt">{wave}</div>'
    '<div class="picture"><img src="{spectrogram}" alt="Spectrogram of the excerpt" width="560" height="144">'
    '<div class="hz" aria-hidden="true">{frequencies}</div></div></div>'
    '<p class="times" aria-hidden="true"><span>0 s</span><span>{half}</span><span>{whole}</span></p>{below}'
    '<audio controls preload="none" src="{sound}" aria-label="{name}"></audio></article>'
)


def player(
    *,
    title: str,
    samples: npt.NDArray[np.float32],
    sample_rate: int,
    facts: str = "",
    badge: str = "",
    notes: Sequence[tuple[str, str]] = (),
    below: Markup | str = "",
) -> Markup:
    """A card with an excerpt to see and to hear.

    Args:
        title: what is heard.
        samples: float [C, L], L at least 1; no more than two channels and MAX_S seconds of it are taken.
        sample_rate: samples per second.
        facts: one line under the title.
        badge: a word or a figure beside the title.
        notes: tone (``trim`` for what is wrong, ``mute`` for the rest) and text of lines under the facts.
        below: a block between the pictures and the player.
    """
    samples = np.nan_to_num(samples[:2, : round(MAX_S * sample_rate)], nan=0, posinf=1, neginf=-1)
    duration_s = samples.shape[1] / sample_rate
    tick = Markup('<span style="bottom:{:.1f}%">{}</span>')
    frequencies = ((200, "200 Hz"), (500, "500"), (1000, "1 kHz"), (2000, "2"), (4000, "4"), (8000, "8"))
    return _CARD.format(
        title=title,
        badge=Markup('<span class="badge">{}</span>').format(badge) if badge else "",
        facts=facts,
        notes=Markup('<ul class="notes" role="list">{}</ul>').format(
            join(Markup('<li class="{}">{}</li>').format(tone, text) for tone, text in notes)
        )
        if notes
        else "",
        wave=waveform(samples),
        spectrogram=spectrogram_uri(samples, sample_rate),
        frequencies=join(tick.format(100 * height_of(hz), name) for hz, name in frequencies),
        half=f"{duration_s / 2:.3g} s",
        whole=f"{duration_s:.3g} s",
        below=below,
        sound=mp3_uri(samples, sample_rate),
        name=f"Play {title}",
    )


def mp3_uri(samples: npt.NDArray[np.float32], sample_rate: int) -> str:
    """An MP3 as a data URI, faded in and out.

    Args:
        samples: finite float [C, L], one or two channels, full scale at 1; beyond is clipped.
        sample_rate: samples per second; where MP3 has no such rate, it is resampled to the nearest.
    """
    C, L = samples.shape
    faded = samples.clip(-1, 1) * _fade(L, sample_rate)
    layout = ("mono", "stereo")[C - 1]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(faded, np.float32), format="fltp", layout=layout)
    frame.sample_rate, frame.pts = sample_rate, 0
    rate = min(MP3_RATES, key=lambda known: abs(known - sample_rate))
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream: Any = container.add_stream("libmp3lame", rate=rate, layout=layout)
        stream.bit_rate = BIT_RATE
        stream.codec_context.options = {"compression_level": "7"}  # half the time of the default, for a preview
        stream.codec_context.open()
        size = stream.codec_context.frame_size
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate, frame_size=size)
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(piece))
    return f"data:audio/mpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _fade(L: int, sample_rate: int) -> npt.NDArray[np.float32]:
    """A gain for each of L samples; the fades share a short excerpt."""
    gain = np.ones(L, np.float32)
    rise, fall = (min(round(seconds * sample_rate), L // 2) for seconds in (FADE_IN_S, FADE_OUT_S))
    gain[:rise] = np.linspace(0, 1, rise)
    gain[L - fall :] = np.linspace(1, 0, fall)
    return gain
