"""Tests of clients that send bodies slowly or incompletely."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app_client import make_settings
from service_process import run_server
from stack_files import noise, write_stack
from talud.serving import security
from talud.serving.app import create_app
from talud.serving.security import HeaderTimeoutProtocol


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slow") / "results/uploads"


@pytest.fixture(scope="module")
def port(uploads: Path) -> Iterator[int]:
    """Yield the port of a service with a minimum rate of 300 bytes per second."""
    app = create_app(make_settings(uploads.parent.parent), open_to_all=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(security, "RATE_WINDOW_SECONDS", 1)
        patch.setattr(security, "MIN_BYTES_PER_SECOND", 300)
        with run_server(app, http=HeaderTimeoutProtocol) as port:
            yield port


def send_slowly(port: int, head: str, parts: Iterator[bytes], pause: float) -> tuple[bytes, float]:
    """Send a body in parts, and return the response and the duration in seconds.

    The response ends when the connection is closed.
    """
    began, received = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        client.settimeout(pause)
        while time.monotonic() - began < 20:
            try:
                # After its answer the service has closed the connection, and sending may fail.
                if part := next(parts, b""):
                    client.sendall(part)
                if not (found := client.recv(65536)):
                    break
                received += found
            except TimeoutError:
                continue
            except OSError:
                break
    return received, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("length", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("start", [b"", b"II*\0" + bytes(280)], ids=["nothing", "part of a file"])
@pytest.mark.parametrize("request_line", ["PUT /uploads/a.tif", "POST /processes/map-landslides/execution"])
def test_slow_body_is_refused_and_deleted(
    request_line: str, start: bytes, length: str, port: int, uploads: Path
) -> None:
    def chunk(content: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(content), content) if "chunked" in length else content

    def parts() -> Iterator[bytes]:
        if start:
            yield chunk(start)
        while True:
            yield chunk(b"0")

    kind = "Content-Type: application/json"
    received, seconds = send_slowly(port, f"{request_line} HTTP/1.1\r\n{kind}\r\n{length}", parts(), 0.1)
    assert received.startswith(b"HTTP/1.1 408"), received
    assert b"arrives too slowly" in received
    assert seconds < 8
    assert not uploads.exists() or list(uploads.iterdir()) == []


@pytest.mark.slow
def test_body_at_minimum_rate_is_accepted(port: int, uploads: Path, tmp_path: Path) -> None:
    content = write_stack(tmp_path / "a.tif", noise(16, 16)).read_bytes()
    steps = 30
    size = -(-len(content) // steps)
    parts = (content[start : start + size] for start in range(0, len(content), size))
    head = f"PUT /uploads/a.tif HTTP/1.1\r\nContent-Length: {len(content)}"
    received, seconds = send_slowly(port, head, parts, 0.1)
    assert received.startswith(b"HTTP/1.1 201"), received
    assert seconds > 2  # twice the rate window
    (folder,) = uploads.iterdir()
    assert next(folder.iterdir()).read_bytes() == content
    (folder / "a.tif").unlink()
    folder.rmdir()
