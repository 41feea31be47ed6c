"""The address that the page is served at."""

import errno
import socket

from musicgen_ft.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that no other machine reaches."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, taken before any model is read.

    Raises:
        UserError: if the port is in use or not allowed, or the host is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host {host}: found no such address. Use 127.0.0.1, or one of this machine's.") from error
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host {host}: is none of this machine's addresses. Use 127.0.0.1.") from error
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
        raise UserError(f"--port {port}: {why}. Give another --port; 0 takes a free one.") from error
    return listening


def url_of(listening: socket.socket) -> str:
    """What to type into a browser on this machine."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
