"""Serves a page on this machine to hear base and tuned side by side; needs the extra ``serve``.

musicgen-ft serve facebook/musicgen-small generator
musicgen-ft serve facebook/musicgen-small --adapter lofi --adapter waltz
musicgen-ft serve nano --port 0
"""

from musicgen_ft.cli import run_recipe
from musicgen_ft.config.serve import ServeConfig


def main(config: ServeConfig) -> None:
    """Takes the port, finds the generators, serves until Ctrl-C."""
    from musicgen_ft.errors import UserError
    from musicgen_ft.generation.adapters import parse_adapters
    from musicgen_ft.peers.engines import open_mixer
    from musicgen_ft.serving.port import listen, url_of

    try:
        from musicgen_ft.serving.page import serve
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "gradio":
            raise
        raise UserError('the page is made with Gradio, found none. Run: pip install "musicgen-ft[serve]"') from error
    from musicgen_ft.serving.studio import Studio, by_short_name

    with listen(config.host, config.port) as listening:
        studio = Studio(
            config.generator,
            adapters=by_short_name(parse_adapters(config.adapter)),
            open_mixer=open_mixer,
            device=config.device,
            max_duration_s=config.max_duration_s,
            max_models=config.max_models,
        )
        print(f"{url_of(listening)} plays {', '.join(studio.generators)}; Ctrl-C ends it", flush=True)
        serve(studio, listening)


if __name__ == "__main__":
    run_recipe(ServeConfig, main)
