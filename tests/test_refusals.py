"""Tests of error messages of tracking servers and proxies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from talud import registry
from talud.errors import RegistryError

PAGE = b"<html><head><title>Error</title></head><body>Access to this page is blocked by policy.</body></html>"
NOT_ALLOWED = "does not allow this for the user in MLFLOW_TRACKING_USERNAME"
LOGIN = "rejects the login; set MLFLOW_TRACKING_USERNAME"


class Answering(BaseHTTPRequestHandler):
    """Server that gives the same answer to all requests and tunnels."""

    status, body = 200, b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_CONNECT = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answering]]:
    class Own(Answering):
        port = 0

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Own) as listening:
        Own.port = listening.server_port
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{Own.port}")
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield Own
        listening.shutdown()


def refusal() -> str:
    with pytest.raises(RegistryError) as caught:
        registry.fetch("models:/any@champion", None)
    said = str(caught.value)
    assert "\n" not in said
    assert "<html>" not in said
    return said


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (403, PAGE, "a proxy or gateway in front of the server, not MLflow, answers with status 403 (Forbidden)"),
        (403, b"", "a proxy or gateway in front of the server, not MLflow, answers with status 403 (Forbidden)"),
        (403, b'{"error": "blocked"}', "a proxy or gateway in front of the server, not MLflow, rejects the request"),
        (401, PAGE, "not MLflow, answers with status 401 (Unauthorized)"),
        (404, PAGE, "not MLflow, answers with status 404 (Not Found)"),
        (407, PAGE, "add the proxy's login to HTTP_PROXY and HTTPS_PROXY"),
        (302, b"", "not MLflow, answers with status 302 (Found)"),
        (502, PAGE, "answers with status 502 (Bad Gateway); it does not reach the server"),
        (503, PAGE, "answers with status 503 (Service Unavailable); it does not reach the server"),
        (429, PAGE, "answers with status 429 (Too Many Requests); wait, then run the command again"),
        (200, PAGE, "the address returns a web page"),
        (403, b"Permission denied", NOT_ALLOWED),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}', NOT_ALLOWED),
        (401, b"You are not authenticated. Please see https://www.mlflow.org/docs/latest/auth/index.html", LOGIN),
    ],
)
def test_refusal_by_mlflow_or_a_proxy_is_distinguished(
    server: type[Answering], status: int, body: bytes, expected: str
) -> None:
    server.status, server.body = status, body
    said = refusal()
    assert expected in said
    assert (NOT_ALLOWED in said or LOGIN in said) == (expected in (NOT_ALLOWED, LOGIN))


@pytest.mark.parametrize("status", [403, 407])
def test_refused_proxy_tunnel_names_the_proxy(
    server: type[Answering], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.status = status
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.invalid")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
    assert f"the proxy in HTTPS_PROXY answers with status {status}" in refusal()


def test_silent_proxy_is_reported(server: type[Answering], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.invalid")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert "the proxy in HTTP_PROXY or HTTPS_PROXY does not answer" in refusal()


def test_https_address_of_an_http_server_is_reported(server: type[Answering], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://127.0.0.1:{server.port}")
    assert "check if MLFLOW_TRACKING_URI must begin with http or https" in refusal()


def test_unknown_host_is_reported(server: type[Answering], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.invalid")
    assert "the host name cannot be resolved" in refusal()
