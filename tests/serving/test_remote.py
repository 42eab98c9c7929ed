"""Tests of downloads and callbacks."""

from __future__ import annotations

import asyncio
import datetime
import gc
import ipaddress
import json
import logging
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stack_files import noise, write_stack
from talud.errors import ForbiddenError, SourceError
from talud.serving import remote
from talud.serving.settings import Settings

# A connection that is cancelled while it is opened is only closed by the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _cancelled_connections_are_collected() -> Iterator[None]:
    yield
    gc.collect()


PUBLIC = "93.184.215.14"


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_stack(tmp_path_factory.mktemp("stack") / "a.tif", noise(20, 28)).read_bytes()


class Host(ThreadingHTTPServer):
    """Local web server that sends answers[path]: bytes, or a status and a Location."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, bytes | tuple[int, str]] = {}
        self.length: int | None = None
        self.pause = 0.0
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Host

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        answer = self.server.answers.get(self.path.partition("?")[0], (404, ""))
        if isinstance(answer, tuple):
            self.send_response(answer[0])
            self.send_header("Location", answer[1])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first = 0
        if wanted := self.headers.get("Range"):
            first, last = (int(end or len(answer)) for end in wanted.removeprefix("bytes=").split("-"))
            whole, answer = len(answer), answer[first : last + 1]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{first + len(answer) - 1}/{whole}")
        if self.server.length is not None or self.command == "HEAD" or wanted:
            self.send_header("Content-Length", str(self.server.length or len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            step = len(answer) // 10 + 1 if self.server.pause else len(answer) + 1
            for start in range(0, len(answer), step):
                time.sleep(self.server.pause)
                self.wfile.write(answer[start : start + step])

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def run_host(tls: ssl.SSLContext | None = None) -> Iterator[Host]:
    with Host() as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def host(raster: bytes) -> Iterator[Host]:
    with run_host() as server:
        server.answers["/maps/liboriana.tif"] = raster
        yield server


def make_settings(folder: Path, *allowed: str, upload_bytes: int = 10**8) -> Settings:
    return Settings(data=folder, results=folder, allowed=allowed, upload_bytes=upload_bytes)


def fetch_error(url: str, folder: Path, settings: Settings) -> str:
    with pytest.raises(SourceError) as caught:
        remote.fetch(url, folder / "kept", settings)
    assert "\n" not in str(caught.value)
    assert not list((folder / "kept").glob("*"))
    return str(caught.value)


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Return a dictionary of host names and the addresses of successive lookups."""
    known: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def look_up(name, port, *arguments, **options):
        name = name.decode() if isinstance(name, bytes) else name
        if name not in known:
            ipaddress.ip_address(name)  # tests must not use the network
            return real(name, port, *arguments, **options)
        answers = known[name]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list that records connections; those to public addresses are refused."""
    places: list[tuple[str, int]] = []
    real = asyncio.BaseEventLoop.create_connection

    async def connect(loop, protocol, host=None, port=None, **options):
        places.append((host, port))
        if not ipaddress.ip_address(host).is_loopback:
            raise ConnectionRefusedError
        return await real(loop, protocol, host, port, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", connect)
    return places


def test_fetch_stores_raster_under_its_name(host: Host, raster: bytes, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, host.address)
    path = remote.fetch(f"http://{host.address}/maps/liboriana.tif?signature=secret", tmp_path / "kept", settings)
    assert path == tmp_path / "kept/liboriana.tif"
    assert path.read_bytes() == raster
    assert [kept.name for kept in path.parent.iterdir()] == ["liboriana.tif"]
    (_, _, headers, _) = host.requests[0]
    assert headers["Host"] == host.address
    assert not {"Cookie", "Authorization"} & headers.keys()


@pytest.mark.parametrize(
    ("path", "name"),
    [("/a/../b.tiff", "b.tif"), ("/%2e%2e%2fpasswd", "passwd.tif"), ("/x.tif.aux.xml", "x_tif_aux_xml.tif"),
     ("/.hidden.tif", "hidden.tif"), ("/" + "n" * 200, "n" * 80 + ".tif"), ("/", "raster.tif")],
)  # fmt: skip
def test_fetch_stores_raster_under_safe_name(path: str, name: str, host: Host, raster: bytes, tmp_path: Path) -> None:
    for asked in (path, "/b.tiff"):
        host.answers[asked] = raster
    kept = remote.fetch(f"http://{host.address}{path}", tmp_path / "kept", make_settings(tmp_path, host.address))
    assert kept == tmp_path / "kept" / name


def test_fetch_sends_no_request_outside_allow_list(host: Host, dns: dict, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "data.example.org", "127.0.0.1:9")
    port = host.server_port
    for place in (
        host.address, f"localhost:{port}", f"0x7f.1:{port}", f"2130706433:{port}", f"127.1:{port}", f"[::1]:{port}",
        f"[::ffff:127.0.0.1]:{port}", f"data.example.org:{port}", "data.example.org.", "evil.data.example.org",
        "data.example.org.evil.org", f"data.example.org@{host.address}", f"data.example.org:pw@{host.address}",
        f"data.example.org%40{host.address}", f"data.example.org#@{host.address}", f"data.example.org\\@{host.address}",
        "data.example.org:22", "user:pw@data.example.org", "", "[fe80::1%25lo]", "dätä.example.org",
    ):  # fmt: skip
        dns["data.example.org"] = [["10.0.0.1"]]
        fetch_error(f"http://{place}/maps/liboriana.tif", tmp_path, settings)
    for url in (
        f"ftp://{host.address}/a.tif", "file:///etc/passwd", f"gopher://{host.address}/", "http:///a.tif", "http:a.tif",
        "/vsicurl/http://127.0.0.1/", "https://data.example.org:65536/a", "http://[::1/a", "http://\0/", "\ud800",
    ):  # fmt: skip
        fetch_error(url, tmp_path, settings)
    assert not host.requests


def test_url_with_password_is_refused(host: Host, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, host.address)
    for who in ("user:secret", "user", ":secret"):
        message = fetch_error(f"http://{who}@{host.address}/maps/liboriana.tif", tmp_path, settings)
        assert "secret" not in message
    assert not host.requests


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%eth0",
     "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:93.184.215.14", "::127.0.0.1",
     "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2001:0:7f00:1::", "fec0::1"],
)  # fmt: skip
def test_host_with_private_address_is_refused(address: str, dns: dict, connections: list, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "data.example.org")
    for found in ([address], [PUBLIC, address]):
        dns["data.example.org"] = [found]
        assert "not a public address" in fetch_error("https://data.example.org/a.tif", tmp_path, settings)
    assert not connections


@pytest.mark.parametrize(
    ("entry", "url", "is_allowed"),
    [
        ("data.example.org", "https://data.example.org/a.tif", True),
        ("data.example.org", "https://DATA.example.org:443/a.tif", True),
        ("data.example.org", "http://data.example.org/a.tif", True),
        ("data.example.org", "http://data.example.org:443/a.tif", False),
        ("data.example.org", "https://data.example.org:8443/a.tif", False),
        ("data.example.org:443", "https://data.example.org/a.tif", True),
        ("data.example.org:443", "http://data.example.org/a.tif", False),
        ("Data.Example.org:8443", "https://data.example.org:8443/a.tif", True),
        ("dätä.example.org", "https://xn--dt-viab.example.org/a.tif", True),
        ("10.1.2.3:443", "https://10.1.2.3/a.tif", True),
        ("10.1.2.3:443", "http://10.1.2.3/a.tif", False),
        ("[fd00::2]:8080", "http://[FD00::2]:8080/a.tif", True),
        ("[fd00::2]:8080", "http://[fd00::2]/a.tif", False),
        (PUBLIC, f"https://{PUBLIC}/a.tif", True),
    ],
)
def test_allow_list_entry_matches_host_and_port(entry: str, url: str, is_allowed: bool, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, entry)
    if is_allowed:
        remote.check_reference(url, settings)
    else:
        with pytest.raises(ForbiddenError):
            remote.check_reference(url, settings)


def test_connection_uses_the_checked_address(dns: dict, connections: list, host: Host, tmp_path: Path) -> None:
    """The host name is resolved only once, which prevents DNS rebinding."""
    dns["data.example.org"] = [[PUBLIC], ["127.0.0.1"]]
    place = f"data.example.org:{host.server_port}"
    fetch_error(f"http://{place}/maps/liboriana.tif", tmp_path, make_settings(tmp_path, place))
    assert connections == [(PUBLIC, host.server_port)]
    assert dns["data.example.org"] == [["127.0.0.1"]]
    assert not host.requests


def test_proxies_of_environment_are_ignored(
    host: Host, dns: dict, connections: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, f"http://{host.address}")
    dns["data.example.org"] = [[PUBLIC]]
    fetch_error("http://data.example.org/maps/liboriana.tif", tmp_path, make_settings(tmp_path, "data.example.org"))
    assert not host.requests


def test_redirect_passes_the_same_checks(host: Host, dns: dict, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, host.address, "data.example.org")
    dns["data.example.org"] = [["169.254.169.254"]]
    with run_host() as inner:
        for leads in (
            f"http://{inner.address}/a.tif",
            "http://data.example.org/",
            "file:///etc/passwd",
            "//[::1]/",
            "http://[",
        ):
            host.answers["/leads"] = (302, leads)
            fetch_error(f"http://{host.address}/leads", tmp_path, settings)
        assert not inner.requests


def test_number_of_redirects_is_limited(host: Host, tmp_path: Path) -> None:
    for step in range(4):
        host.answers[f"/{step}"] = (307, f"/{step + 1}" if step < 3 else "/maps/liboriana.tif")
    settings = make_settings(tmp_path, host.address)
    assert "too many redirects" in fetch_error(f"http://{host.address}/0", tmp_path, settings)
    assert remote.fetch(f"http://{host.address}/1", tmp_path / "kept", settings).name == "1.tif"


@pytest.mark.parametrize("length", [None, 10])
def test_download_over_size_limit_is_refused(length: int | None, host: Host, raster: bytes, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, host.address, upload_bytes=len(raster) - 1)
    message = fetch_error(f"http://{host.address}/maps/liboriana.tif", tmp_path, settings)
    assert "larger than" in message
    host.length = length
    fetch_error(f"http://{host.address}/maps/liboriana.tif", tmp_path, settings)


def test_failed_download_is_deleted(host: Host, raster: bytes, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, host.address)
    host.answers |= {"/vrt.tif": b"<VRTDataset/>", "/cut.tif": raster[:100], "/page.tif": b"<html>"}
    for path in ("vrt.tif", "cut.tif", "page.tif", "missing.tif"):
        fetch_error(f"http://{host.address}/{path}", tmp_path, settings)
    host.length = len(raster) + 1
    assert "cannot be downloaded" in fetch_error(f"http://{host.address}/maps/liboriana.tif", tmp_path, settings)


def make_certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """Create a certificate authority and the TLS context of a host name."""
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    ours, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])

    def build(subject: str, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(issuer, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(start).not_valid_after(start + datetime.timedelta(days=2))
            .add_extension(extension, critical=True)
        )  # fmt: skip

    authority = build("an authority", ours, x509.BasicConstraints(True, None)).sign(ours, hashes.SHA256())
    server = build(name, theirs, x509.SubjectAlternativeName([x509.DNSName(name)])).sign(ours, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(authority.public_bytes(pem))
    key = theirs.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(key + server.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return folder / "ca.pem", context


def test_tls_verifies_host_name_of_url(
    dns: dict, raster: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, tls = make_certificate(tmp_path, "data.example.org")
    monkeypatch.setattr(
        remote, "is_public", lambda address: True
    )  # so that a local server can stand in for a public host
    with run_host(tls) as server:
        server.answers["/a.tif"] = raster
        right, wrong = (f"{name}:{server.server_port}" for name in ("data.example.org", "other.example.org"))
        dns |= {"data.example.org": [["127.0.0.1"]], "other.example.org": [["127.0.0.1"]]}
        settings = make_settings(tmp_path, right, wrong)
        assert "cannot be downloaded" in fetch_error(
            f"https://{right}/a.tif", tmp_path, settings
        )  # of an unknown authority
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        assert "cannot be downloaded" in fetch_error(f"https://{wrong}/a.tif", tmp_path, settings)
        assert not server.requests
        assert remote.fetch(f"https://{right}/a.tif", tmp_path / "kept", settings).read_bytes() == raster


@pytest.fixture
def bucket(host: Host, raster: bytes, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Return a local server that behaves like S3 for reading an object."""
    host.answers |= {"/rasters/basins/a.tif": raster, "/rasters/fake.tif": b"<VRTDataset/>", "/other/a.tif": raster}
    for name, value in {
        "AWS_S3_ENDPOINT": host.address, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "secret", "GDAL_HTTP_MAX_RETRY": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return host


def test_s3_object_of_allowed_bucket_is_copied_unchanged(bucket: Host, raster: bytes, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "s3://rasters")
    path = remote.fetch("s3://rasters/basins/a.tif", tmp_path / "kept", settings)
    assert path == tmp_path / "kept/a.tif"
    assert path.read_bytes() == raster
    assert {asked for _, asked, _, _ in bucket.requests} == {"/rasters/basins/a.tif"}
    assert all("Credential=who/" in headers["Authorization"] for _, _, headers, _ in bucket.requests)


@pytest.mark.slow
def test_other_s3_objects_are_refused(bucket: Host, raster: bytes, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "s3://rasters", bucket.address)
    for url in (
        "s3://other/a.tif", "s3://rasters/../other/a.tif", "s3://rasters", "s3://rasters/", "s3:///a.tif",
        "s3://rasters//a.tif", "s3://rasters/basins/a.tif?versionId=1", "s3://rasters@evil/a.tif", "S3://rasters/a.tif",
        "s3://RASTERS/a.tif", "s3://rasters/a\n.tif", "s3://./a.tif",
    ):  # fmt: skip
        fetch_error(url, tmp_path, settings)
    assert not bucket.requests
    assert "is not a raster" in fetch_error("s3://rasters/missing.tif", tmp_path, settings)
    fetch_error("s3://rasters/fake.tif", tmp_path, settings)
    small = settings.model_copy(update={"upload_bytes": len(raster) - 1})
    assert "larger than" in fetch_error("s3://rasters/basins/a.tif", tmp_path, small)


def test_callback_is_posted_to_allowed_location(host: Host, tmp_path: Path) -> None:
    host.answers["/done"] = b""
    remote.notify(f"http://{host.address}/done", {"status": "successful"}, make_settings(tmp_path, host.address))
    ((method, path, headers, body),) = host.requests
    assert (method, path, headers["Content-Type"]) == ("POST", "/done", "application/json")
    assert json.loads(body) == {"status": "successful"}


def test_failed_callback_is_only_logged(host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = make_settings(tmp_path, host.address, "127.0.0.1:9")
    host.answers["/leads"] = (307, "/done")
    with caplog.at_level(logging.WARNING):
        for url in ("http://127.0.0.1:9/", "http://localhost/", f"http://{host.address}/leads", "file:///etc/passwd"):
            remote.notify(url, {}, settings)
    assert len([record for record in caplog.records if record.name == remote.__name__]) == 4
    assert [path for _, path, _, _ in host.requests] == ["/leads"]


class SlowServer(socketserver.ThreadingTCPServer):
    """Local server that sends a text at four bytes a second."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, text: bytes) -> None:
        super().__init__(("127.0.0.1", 0), SlowHandler)
        self.text = text

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class SlowHandler(socketserver.BaseRequestHandler):
    server: SlowServer

    def handle(self) -> None:
        for byte in self.server.text + bytes(10**6):
            try:
                self.request.sendall(bytes([byte]))
            except OSError:  # the client has disconnected
                return
            time.sleep(0.25)


HEADERS = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
PHASES = {
    "silent": b"",
    "headers": b"HTTP/1.1 200 OK\r\nX: ",
    "body": HEADERS,
    "redirection": b"HTTP/1.1 302 Found\r\n",
}


@contextmanager
def slow_host(phase: str) -> Iterator[str]:
    """Yield the address of a host that is slow in one phase of its response.

    From then on it sends four bytes a second.
    """
    with SlowServer(b"") as server:
        quick = PHASES[phase]

        class Handler(SlowHandler):
            def handle(self) -> None:
                self.request.recv(65536)
                self.request.sendall(quick)
                if phase == "silent":
                    while self.request.recv(65536):  # until the client disconnects
                        pass
                else:
                    super().handle()

        server.RequestHandlerClass = Handler
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


class Cancelled(Exception):  # noqa: N818 - no error
    """Exception that cancels a download."""


@pytest.mark.parametrize(("scheme", "phase"), [*(("http", phase) for phase in PHASES), ("https", "silent")])
def test_cancelled_fetch_ends_quickly(scheme: str, phase: str, tmp_path: Path) -> None:
    began = time.monotonic()

    def check_wanted() -> None:
        if time.monotonic() - began > 0.5:
            raise Cancelled

    with slow_host(phase) as place, pytest.raises(Cancelled):
        remote.fetch(f"{scheme}://{place}/a.tif", tmp_path / "kept", make_settings(tmp_path, place), check_wanted)
    assert time.monotonic() - began < 10
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("limit", "message"),
    [("RATE_WINDOW_SECONDS", "less than 10,000 bytes per second"), ("MAX_DOWNLOAD_SECONDS", "took longer than")],
)
def test_download_from_slow_host_fails(
    limit: str, message: str, phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, limit, 0.5)
    began = time.monotonic()
    with slow_host(phase) as place:
        assert message in fetch_error(f"http://{place}/a.tif", tmp_path, make_settings(tmp_path, place))
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_download_at_minimum_rate_succeeds(
    host: Host, raster: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RATE_WINDOW_SECONDS", 0.7)
    monkeypatch.setattr(remote, "MIN_BYTES_PER_SECOND", len(raster) // 10)
    host.pause = 0.15  # seconds before each tenth of the body
    url = f"http://{host.address}/maps/liboriana.tif"
    path = remote.fetch(url, tmp_path / "kept", make_settings(tmp_path, host.address))
    assert path.read_bytes() == raster


@pytest.mark.slow
def test_cancelled_s3_copy_ends_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()

    def check_wanted() -> None:
        if time.monotonic() - began > 1:
            raise Cancelled

    with slow_host("body") as place:
        for name, value in {
            "AWS_S3_ENDPOINT": place, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_NO_SIGN_REQUEST": "YES",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        with pytest.raises(Cancelled):
            remote.fetch("s3://rasters/a.tif", tmp_path / "kept", make_settings(tmp_path, "s3://rasters"), check_wanted)
    assert time.monotonic() - began < 10
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("phase", ["silent", "headers"])
def test_callback_ends_after_timeout(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "CALLBACK_TIMEOUT_SECONDS", 0.5)
    began = time.monotonic()
    with slow_host(phase) as place, caplog.at_level(logging.WARNING):
        remote.notify(f"http://{place}/done", {}, make_settings(tmp_path, place))
    assert time.monotonic() - began < 10
    assert "no response within" in caplog.text


SIGNED = [
    "https://{place}/a.tif?X-Amz-Credential=who&X-Amz-Signature=5ec4e7",
    "https://{place}/a.tif?sv=2024&sig=5ec4e7",
    "https://{place}/a.tif?token=5ec4e7#5ec4e7",
    "https://{place}/a.tif#token=5ec4e7",
    "https://user:5ec4e7@{place}/a.tif",
    "https://5ec4e7@{place}/a.tif?x",
    "https://user:5ec4e7@{place}:99999/a.tif",
    "https://user:5ec4e7@/a.tif",
    "https:a.tif?sig=5ec4e7",
    "http://[::1/a.tif?sig=5ec4e7",
    "https://user:5ec4e7@[::1/a.tif",
    "https://dätä@{place}/\n?sig=5ec4e7",
    "s3://bucket/a.tif?X-Amz-Signature=5ec4e7",
    "s3://user:5ec4e7@bucket/a.tif",
    "s3://other/a\u202e.tif?sig=5ec4e7",
]


@pytest.mark.slow
@pytest.mark.parametrize("url", SIGNED)
def test_messages_contain_no_signature_or_password(
    url: str, host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for answer in (b"<html>", (404, ""), (302, "https://elsewhere.example/b.tif?sig=5ec4e7"), (302, "http://[?5ec4e7")):
        host.answers["/a.tif"] = answer
        for address in (url, url.replace("https", "http")):
            message = fetch_error(
                address.replace("{place}", host.address), tmp_path, make_settings(tmp_path, host.address)
            )
            assert "5ec4e7" not in message
    assert "5ec4e7" not in remote.without_secrets(url)
    with caplog.at_level(logging.DEBUG, logger="talud"):
        remote.notify(url.replace("{place}", host.address), {}, make_settings(tmp_path, host.address))
    assert "5ec4e7" not in "".join(record.getMessage() for record in caplog.records if "talud" in record.name)
