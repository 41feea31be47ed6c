"""Toy bases in both formats, each test's own to change; a hub on this machine."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants

from musicgen_ft.checkpoint import audiocraft_format, transformers_format
from musicgen_ft.codec import Codec
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel


@pytest.fixture(scope="session")
def toy_lm(make_lm: Callable[..., LanguageModel], nano_codec: Codec, text_encoder: TextEncoder) -> LanguageModel:
    """A language model that fits nano's codec and T5."""
    return make_lm(card=nano_codec.spec.card, n_q=nano_codec.spec.n_q, text_dim=text_encoder.dim)


@pytest.fixture(scope="session")
def _audiocraft_files(
    tmp_path_factory: pytest.TempPathFactory, toy_lm: LanguageModel, nano_codec: Codec, text_encoder: TextEncoder
) -> Path:
    folder = tmp_path_factory.mktemp("audiocraft")
    state, t5 = toy_lm.state_dict(), audiocraft_format.T5_FOLDER
    audiocraft_format.write_folder(folder, state, toy_lm.config, nano_codec, text_encoder_id=t5)
    transformers_format.write_text_encoder(folder / t5, text_encoder)
    return folder


@pytest.fixture(scope="session")
def _transformers_files(
    tmp_path_factory: pytest.TempPathFactory, toy_lm: LanguageModel, nano_codec: Codec, text_encoder: TextEncoder
) -> Path:
    folder = tmp_path_factory.mktemp("transformers")
    transformers_format.write_folder(folder, toy_lm.state_dict(), toy_lm.config, nano_codec, text_encoder)
    return folder


@pytest.fixture
def audiocraft_folder(tmp_path: Path, _audiocraft_files: Path) -> Path:
    """The toy model in audiocraft's format, T5 beside it."""
    return Path(shutil.copytree(_audiocraft_files, tmp_path / "audiocraft"))


@pytest.fixture
def transformers_folder(tmp_path: Path, _transformers_files: Path) -> Path:
    """The toy model in transformers' format."""
    return Path(shutil.copytree(_transformers_files, tmp_path / "transformers"))


@pytest.fixture
def edit_package() -> Callable[..., None]:
    """A function that rewrites an audiocraft file: its content, and its xp.cfg as nested dictionaries, in place."""

    def edit(
        path: Path,
        config: Callable[[dict[str, Any]], object] = lambda _: None,
        content: Callable[[dict[str, Any]], object] = lambda _: None,
    ) -> None:
        package = torch.load(path, weights_only=True)
        values = yaml.safe_load(package["xp.cfg"])
        config(values)
        package["xp.cfg"] = yaml.safe_dump(values)
        content(package)
        torch.save(package, path)

    return edit


# ---- a hub -----------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Enough of the hub's API for ``snapshot_download`` and ``list_repo_files``."""

    url: str = ""
    repos: dict[str, Path] = field(default_factory=dict)
    """Hub id -> folder."""
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Hub id -> status and X-Error-Code with which everything of it is refused."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Authorization header of every request so far."""

    def downloads(self) -> list[str]:
        """Names of the files that were sent, sorted."""
        return sorted(
            path.split(f"/resolve/{COMMIT}/")[1] for method, path, _ in self.requests if _is_get(method, path)
        )

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        for repo, (status, code) in self.refused.items():
            if repo in path:
                return status, {"X-Error-Code": code}, b"{}"
        for repo, folder in self.repos.items():
            if path in (f"/api/models/{repo}/revision/main", f"/api/models/{repo}/revision/{COMMIT}"):
                siblings = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                return 200, {}, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
            if path == f"/api/models/{repo}/tree/{COMMIT}":
                return 200, {}, json.dumps([_entry(folder, file) for file in sorted(folder.iterdir())]).encode()
            file = folder / path.removeprefix(f"/{repo}/resolve/{COMMIT}/")
            if path.startswith(f"/{repo}/resolve/{COMMIT}/") and file.is_file():
                return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(file)}"'}, file.read_bytes()
        return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'


def _is_get(method: str, path: str) -> bool:
    return method == "GET" and "/resolve/" in path


def _entry(folder: Path, file: Path) -> dict[str, Any]:
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _oid(file)}


def _oid(file: Path) -> str:
    return f"{file.stat().st_size:032x}{abs(hash(file.name)) % 16**8:08x}"


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers["Authorization"]))
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = respond  # noqa: N815  # names that the base class calls

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An online hub at this machine with no repositories yet, and an empty cache."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        huggingface_hub.close_session()
        yield hub
        server.shutdown()
        thread.join()
        huggingface_hub.close_session()


@pytest.fixture
def go_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that throws ``HF_HUB_OFFLINE``."""
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def cut_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after which nothing listens where the hub was."""

    def cut() -> None:
        closed = "http://127.0.0.1:1"
        monkeypatch.setattr(constants, "ENDPOINT", closed)
        template = closed + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return cut
