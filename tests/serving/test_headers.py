"""Tests of clients that send headers slowly or incompletely."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from service_process import run_server
from talud.serving import security
from talud.serving.security import HeaderTimeoutProtocol


async def slow_app(scope, receive, send) -> None:
    """Answer after a second, which exceeds the header timeout of these tests."""
    if scope["type"] == "http":
        if scope["path"] == "/slow":
            await asyncio.sleep(1)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Yield the port of a server with a short header timeout."""
    monkeypatch.setattr(security, "HEADER_TIMEOUT_SECONDS", 0.5)
    with run_server(slow_app, http=HeaderTimeoutProtocol, lifespan="off") as port:
        yield port


def seconds_until_closed(client: socket.socket, drip: bytes) -> float:
    """Return the seconds until the server closes a connection.

    Headers are sent byte by byte meanwhile.
    """
    began = time.monotonic()
    client.settimeout(0.1)
    while time.monotonic() - began < 10:
        try:
            client.sendall(drip)
            if client.recv(100) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began


@pytest.mark.parametrize("begin", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX: "])
def test_connection_with_incomplete_headers_is_closed(begin: bytes, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(begin)
        assert seconds_until_closed(client, b"a" if begin else b"") < 5


def test_second_request_on_connection_has_same_timeout(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert seconds_until_closed(client, b"a") < 5


@pytest.mark.slow
def test_response_may_take_longer_than_header_timeout(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(10)
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
