"""What a user can do wrong before the page is there."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


def test_gradio_missing_is_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "musicgen_ft.serving.page", raising=False)

    result = command("serve", "nano", "--port", 0)

    assert (result.status, result.out) == (2, "")
    assert result.err == (
        'musicgen-ft serve: the page is made with Gradio, found none. Run: pip install "musicgen-ft[serve]"\n'
    )


def test_no_generator_and_a_port_that_is_none_are_one_line(command: Command) -> None:
    for words, told in (((), "generator"), (("nano", "--port", 70000), "port: found 70000, expected at most 65535.")):
        result = command("serve", *words)
        assert result.status == 2
        assert told in result.err
        assert result.err.count("\n") == 1


def test_a_port_in_use_and_a_generator_that_is_not_there_are_one_line(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the extra serve is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = command("serve", "nano", "--port", port)
    assert result.status == 2
    assert result.err == f"musicgen-ft serve: --port {port}: is in use. Give another --port; 0 takes a free one.\n"

    result = command("serve", "nano", tmp_path / "nothing", "--port", 0)
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert "nothing" in result.err
