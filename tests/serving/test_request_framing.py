"""Tests of requests with an ambiguous length, over a raw socket.

A request that is hidden in the body of another must not be answered.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service_process import ServiceProcess, run_service

pytestmark = pytest.mark.slow  # the tests share a service process

HIDDEN = "GET /processes HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED_END = "0\r\n\r\n"


@pytest.fixture(scope="module")
def service(service_project: Path) -> Iterator[ServiceProcess]:
    with run_service(service_project) as running:
        yield running


def response_statuses(
    service: ServiceProcess, *headers: str, body: str, method: str = "POST", version: str = "1.1"
) -> list[int]:
    """Send a request and return the statuses of all answers.

    Read until the service closes the connection.
    """
    address = service.http.base_url
    lines = [f"{method} /session HTTP/{version}", f"Host: localhost:{address.port}", *headers]
    received = b""
    with socket.create_connection((address.host, address.port), timeout=20) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode("latin-1"))
        while part := connection.recv(65536):
            received += part
    return [int(line.split()[1]) for line in received.decode("latin-1").splitlines() if line.startswith("HTTP/1.")]


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
        ("content-length: 5", "TRANSFER-ENCODING: Chunked"),
        ("Content-Length: 0", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Transfer-Encoding: identity"),
        ("Content-Length: 5", "Transfer-Encoding: gzip, chunked"),
        ("Content-Length: 5", "Transfer-Encoding:"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", "Content-Length: 5"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5, 6",),
        ("Content-Length: +5",),
        ("Content-Length: 0x5",),
        ("Content-Length: -1",),
        ("Content-Length : 5",),
        ("Content-Length: 5", " Transfer-Encoding: chunked"),
        ("Transfer-Encoding : chunked",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: \x0bchunked",),
    ],
)
def test_request_with_ambiguous_length_is_refused(
    headers: tuple[str, ...], method: str, service: ServiceProcess
) -> None:
    (status,) = response_statuses(service, *headers, method=method, body=CHUNKED_END + HIDDEN)
    assert status in (400, 501)


def test_refusal_of_ambiguous_length_gives_reason(service: ServiceProcess) -> None:
    answer = service.http.post(
        "/session", headers={"Content-Length": "5", "Transfer-Encoding": "chunked"}, content=iter([b"{}"])
    )
    assert answer.status_code == 400
    assert answer.headers["Connection"] == "close"
    assert "states its length twice" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("header", "body"), [("Content-Length: 2", "{}"), ("Transfer-Encoding: chunked", "2\r\n{}\r\n0\r\n\r\n")]
)
def test_request_with_one_length_is_accepted(header: str, body: str, service: ServiceProcess) -> None:
    kind = "Content-Type: application/json"
    assert response_statuses(service, header, kind, "Connection: close", body=body) == [422]  # {} holds no key
