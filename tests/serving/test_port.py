"""The address that the page is served at."""

import socket

import pytest

from musicgen_ft.errors import UserError
from musicgen_ft.serving.port import listen, url_of


def test_a_free_port_is_taken_and_told() -> None:
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert url_of(listening) == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_a_port_in_use_is_told() -> None:
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: is in use\. Give another --port"):
            listen("127.0.0.1", port)


def test_a_host_of_another_machine_is_told() -> None:
    for host in (".".join(["192", "0", "2", "1"]), "no such host"):  # of RFC 5737, for documents; and no name
        with pytest.raises(UserError, match=rf"--host {host}: .* Use 127\.0\.0\.1"):
            listen(host, 0)
