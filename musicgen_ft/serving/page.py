"""How the page looks, in Gradio: two columns that play the same wish.

All that can go wrong is the studio's to tell; here its lines become messages. Nothing is fetched from another host: the
browser is told to refuse it.
"""

import html
import json
import logging
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.themes import Default  # pyright: ignore[reportMissingImports]

from musicgen_ft.audio import write_wav
from musicgen_ft.errors import UserError
from musicgen_ft.serving.port import LOOPBACK
from musicgen_ft.serving.studio import MAX_STRENGTH, Piece, Side, Studio, Wish
from musicgen_ft.terminal import slug

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[Scope], Awaitable[None]]
Application = Callable[[Scope, Callable[[], Awaitable[Scope]], Send], Awaitable[None]]

EXAMPLES = (
    "slow waltz with strings and a music box",
    "lofi hip hop, dusty drums, warm electric piano",
    "techno at 128 bpm, driving bass, sparse percussion",
    "acoustic guitar ballad, fingerpicked, intimate",
)
_OWN_ONLY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'"
_CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_KEYS = """<script>
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    // A field hands over what was typed when it loses the focus.
    const field = document.activeElement;
    field?.blur();
    setTimeout(() => { document.querySelector("#play")?.click(); field?.focus(); }, 50);
  }
});
</script>"""


@dataclass(frozen=True)
class _Column:
    """What one side consists of; the components are Gradio's."""

    name: str
    model: Any
    strengths: dict[str, Any]
    status: Any
    audio: Any
    wav: Any
    settings: Any

    @property
    def outputs(self) -> list[Any]:
        return [self.status, self.audio, self.wav, self.settings]


def build_page(studio: Studio, *, seed: int | None = None) -> Any:
    """The page, as a ``gradio.Blocks``.

    Args:
        studio: what plays.
        seed: that the page begins with; None draws one.
    """
    with gr.Blocks(title="musicgen-ft", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        gr.HTML("<h1>musicgen-ft</h1>", elem_id="title")
        prompt = gr.Textbox(
            label="Prompt", lines=2, max_lines=6, placeholder="What to play; empty plays without a condition",
            autofocus=True, elem_id="prompt", info="Ctrl+Enter plays",
        )  # fmt: skip
        with gr.Row(elem_id="examples"):
            for example in EXAMPLES:
                button = gr.Button(example, size="sm", min_width=0)
                button.click(lambda text=example: text, None, prompt, queue=False, api_visibility="private")
        with gr.Row(elem_classes="knobs"):
            longest = studio.max_duration_s
            duration = gr.Slider(0.5, longest, min(10.0, longest), step=0.5, label="Seconds", buttons=[])
            guidance = gr.Slider(0, 10, 3.0, step=0.1, label="Guidance (1: none)", buttons=[])
            with gr.Row(elem_classes="seed"):
                first = random.randrange(10_000) if seed is None else seed
                number = gr.Number(first, precision=0, minimum=0, label="Seed", min_width=80)
                dice = gr.Button("Draw", min_width=64, elem_classes="dice", elem_id="dice", size="sm")
                same = gr.Checkbox(True, label="same for A and B", min_width=120, elem_classes="same")
        with gr.Accordion("Melody, clip to go on from", open=False), gr.Row():
            melody = gr.Audio(
                label="Melody to follow", type="filepath", sources=["upload", "microphone"], buttons=[],
                elem_id="melody", visible=_takes_melody(studio, *_first_choice(studio)),
            )  # fmt: skip
            clip = gr.Audio(
                label="Clip to go on from; its seconds count", type="filepath", sources=["upload", "microphone"],
                buttons=[], elem_id="clip",
            )  # fmt: skip
        with gr.Accordion("Negative prompt, how codes are drawn", open=False):
            negative = gr.Textbox(label="Negative prompt", placeholder="What to stay away from", lines=1)
            usual_k = studio.facts(studio.generators[0]).top_k
            with gr.Row():
                temperature = gr.Slider(0, 2, 1.0, step=0.05, label="Temperature", buttons=[])
                top_k = gr.Slider(0, 1000, usual_k, step=1, label="Top-k (0: all)", buttons=[])
                top_p = gr.Slider(0, 1, 0.0, step=0.01, label="Top-p (above 0: no top-k)", buttons=[])
        with gr.Row(elem_id="go"):
            play = gr.Button("Play", variant="primary", elem_id="play", scale=3)
            stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
        with gr.Row(elem_id="sides"):
            columns = [_column(studio, name, at) for at, name in enumerate("AB")]

        choices = [column.model for column in columns]
        for column in columns:
            sliders = list(column.strengths.values())

            def chosen(*models: str, own: int = "AB".index(column.name), count: int = len(sliders)) -> list[Any]:
                over = bool(studio.adapters_of(models[own]))
                return [
                    gr.update(visible=_takes_melody(studio, *models)),
                    *(gr.update(visible=over) for _ in range(count)),
                ]

            column.model.change(
                chosen, choices, [melody, *sliders], queue=False, show_progress="hidden", api_visibility="private"
            )
        dice.click(lambda: random.randrange(10_000), None, number, queue=False, api_visibility="private")

        def both(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
            wish = Wish(
                prompt=values[prompt] or "",
                negative_prompt=values[negative] or "",
                duration_s=values[duration],
                seed=values[number],
                cfg_coef=values[guidance],
                temperature=values[temperature],
                top_k=values[top_k],
                top_p=values[top_p],
                melody=_path(values[melody]) if _takes_melody(studio, *(values[model] for model in choices)) else None,
                clip=_path(values[clip]),
            )
            yield from _play(studio, columns, wish, values, is_same_seed=values[same])

        inputs = {prompt, negative, duration, number, same, guidance, temperature, top_k, top_p, melody, clip, *choices}
        inputs |= {slider for column in columns for slider in column.strengths.values()}
        outputs = [output for column in columns for output in column.outputs]
        playing = play.click(
            both, inputs, outputs, show_progress="hidden", api_name="play", concurrency_id="play", concurrency_limit=1
        )  # fmt: skip
        stop.click(
            lambda: ["<p class='done'>stopped</p>"] * len(columns), None, [column.status for column in columns],
            cancels=[playing], queue=False, api_visibility="private",
        )  # fmt: skip
    return page


def serve(studio: Studio, listening: socket.socket) -> None:
    """Serves the page until Ctrl-C or SIGTERM. Uploads and pieces lie in a temporary folder, which goes then."""
    import uvicorn  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory(prefix="musicgen-ft-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        config = uvicorn.Config(
            application(build_page(studio), host=listening.getsockname()[0]), log_level="warning", lifespan="on",
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        # uvicorn hands a signal on to the handler before it: the default one would leave the folder behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        uvicorn.Server(config).run(sockets=[listening])


def application(page: Any, *, host: str) -> Application:
    """The page as an ASGI application that lets the browser load from itself alone.

    Args:
        page: of ``build_page``.
        host: that it is served at. On the loopback, requests under other names are refused: a foreign page could else
            point its own name here, and read.
    """
    from fastapi import FastAPI  # pyright: ignore[reportMissingImports]
    from starlette.middleware.trustedhost import TrustedHostMiddleware  # pyright: ignore[reportMissingImports]

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    fonts = ["system-ui", "sans-serif"]
    theme = Default(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate",
        font=fonts, font_mono=["ui-monospace", "monospace"],
    )  # fmt: skip
    mounted: Application = gr.mount_gradio_app(
        app, page, path="", footer_links=[], ssr_mode=False, show_error=False, enable_monitoring=False, pwa=False,
        mcp_server=False, theme=theme, css=_CSS, head=_KEYS, max_file_size="200mb",
    )  # fmt: skip
    return _own_only(mounted)


def _own_only(app: Application) -> Application:
    """Adds the header by which a browser refuses to load anything from another host."""

    async def answer(scope: Scope, receive: Callable[[], Awaitable[Scope]], send: Send) -> None:
        async def send_with_header(message: Scope) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", _OWN_ONLY.encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        await app(scope, receive, send_with_header)

    return answer


def _column(studio: Studio, name: str, at: int) -> _Column:
    with gr.Column(min_width=280, elem_classes="side", elem_id=f"side-{name.lower()}"):
        chosen = _first_choice(studio)[at]
        model = gr.Dropdown(
            [(_short(studio, generator), generator) for generator in studio.generators], value=chosen, label=name,
            filterable=False,
        )  # fmt: skip
        strengths = {}
        for number, adapter in enumerate(studio.adapters):
            strength = 1.0 if at and number == 0 else 0.0  # base beside tuned
            strengths[adapter] = gr.Slider(
                -MAX_STRENGTH, MAX_STRENGTH, strength, step=0.05, label=f"Strength of {adapter}", buttons=[],
                visible=bool(studio.adapters_of(chosen)),
            )  # fmt: skip
        status = gr.HTML("", elem_classes="status", elem_id=f"status-{name.lower()}")
        audio = gr.Audio(
            label=f"{name} plays", type="filepath", interactive=False, buttons=[], elem_id=f"audio-{name.lower()}",
            waveform_options=gr.WaveformOptions(waveform_color="#94a3b8", waveform_progress_color="#6366f1"),
        )  # fmt: skip
        with gr.Row():
            wav = gr.DownloadButton("Download WAV", size="sm", visible=False, min_width=80)
            settings = gr.DownloadButton("Settings (JSON)", size="sm", visible=False, min_width=80)
    return _Column(name, model, strengths, status, audio, wav, settings)


def _play(
    studio: Studio, columns: list[_Column], wish: Wish, values: dict[Any, Any], *, is_same_seed: bool
) -> Iterator[dict[Any, Any]]:
    """Plays one column after the other; what is wrong with one does not keep the other from playing."""
    messages: list[str] = []
    blank = {column.status: _waiting() for column in columns}
    for column in columns:
        files = (column.wav, column.settings)
        blank |= {column.audio: None, **{file: gr.update(value=None, visible=False) for file in files}}
    yield blank
    for at, column in enumerate(columns):
        generator = values[column.model]
        over = studio.adapters_of(generator)
        strengths = {name: values[slider] for name, slider in column.strengths.items() if name in over}
        seed = wish.seed if is_same_seed or wish.seed is None else wish.seed + at
        try:
            own = Wish(**{**vars(wish), "seed": seed})
            for piece in studio.play(Side(generator=generator, strengths=strengths), own):
                if piece.is_done:
                    with tempfile.TemporaryDirectory() as folder:  # Gradio copies what it is given
                        yield _done(column, piece, own, Path(folder))
                else:
                    yield {column.status: _progress(piece)}
        except UserError as error:
            messages.append(str(error))
            yield {column.status: _failed(str(error))}
        except Exception as error:
            logger.exception("a fault of ours")
            messages.append(f"A fault of ours ({type(error).__name__}): the terminal tells more.")
            yield {column.status: _failed(messages[-1])}
    for message in dict.fromkeys(messages):
        # Not gr.Error, which would write "Error" over the side that has played, too.
        gr.Warning(html.escape(message), title="Not played")


def _done(column: _Column, piece: Piece, wish: Wish, folder: Path) -> dict[Any, Any]:
    path = folder / f"{slug(wish.prompt)}_{wish.seed}_{column.name}.wav"
    write_wav(path, piece.waveform, piece.sample_rate)
    settings = path.with_suffix(".json")
    settings.write_text(json.dumps(piece.how, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return {
        column.status: f"<p class='done'>seed {wish.seed} · {' · '.join(map(html.escape, piece.notes))}</p>",
        column.audio: str(path),
        column.wav: gr.update(value=str(path), visible=True),
        column.settings: gr.update(value=str(settings), visible=True),
    }


def _waiting() -> str:
    return "<p class='wait' role='status'>waits: the model is opened, or the other side plays</p>"


def _progress(piece: Piece) -> str:
    share = min(1.0, piece.played_s / piece.duration_s)
    return (
        f"<div class='bar' role='progressbar' aria-valuenow='{share:.0%}'><span style='width:{share:.0%}'></span></div>"
        f"<p class='wait'>{piece.played_s:.1f} of {piece.duration_s:g} s</p>"
    )


def _failed(message: str) -> str:
    return f"<p class='failed' role='alert'>{html.escape(message)}</p>"


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None


def _first_choice(studio: Studio) -> tuple[str, str]:
    """The base on the left and the tuned one on the right, where there are two; else one model on both."""
    base, *others = studio.generators
    return base, others[0] if others and not studio.adapters else base


def _takes_melody(studio: Studio, *generators: str) -> bool:
    return any(studio.facts(name).takes_melody for name in generators)


def _short(studio: Studio, generator: str) -> str:
    """A folder's last name, where no other generator has the same."""
    short = Path(generator).name if Path(generator).is_dir() else generator
    return short if [Path(name).name for name in studio.generators].count(short) <= 1 else generator
