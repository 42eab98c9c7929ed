"""Tests of authentication, sessions and request checks."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from sqlalchemy import select, update

import talud.serving
from talud.cluster_connection import connect_workers
from talud.serving.app import SECURITY_HEADERS, create_app
from talud.serving.database import utc_now
from talud.serving.keys import SESSION_HOURS
from talud.serving.security import (
    MAX_BODY_BYTES,
    MAX_WRONG_KEYS,
    SESSION_COOKIE,
    WRONG_KEYS_WINDOW_SECONDS,
    LoginThrottle,
)
from talud.serving.service import ReadKey, RunKey
from talud.serving.settings import Settings
from talud.serving.tables import Key, PageSession, Scope

SITE = "https://maps.example.org"


def add_routes(app: FastAPI) -> FastAPI:
    """Add routes that read, change, and receive a body of any size."""

    @app.get("/thing")
    def read(key: ReadKey) -> str:
        return key.name

    @app.put("/thing")
    def change(key: RunKey, body: dict) -> str:
        return key.name

    @app.put("/uploads/there/{name}")
    async def upload(name: str, request: Request, key: RunKey) -> int:
        return len(await request.body())

    return app


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a scheduler, shared by the services of this module."""
    with connect_workers(1, tmp_path_factory.mktemp("workers")) as cluster:
        yield cluster.scheduler.address


@pytest.fixture
def client(tmp_path: Path, workers: str) -> Iterator[TestClient]:
    """Yield a client of a service that requires keys, behind TLS."""
    settings = Settings(data=tmp_path, results=tmp_path / "keys", workers=workers)
    with TestClient(add_routes(create_app(settings)), base_url=SITE) as client:
        yield client


@pytest.fixture
def open_client(tmp_path: Path, workers: str) -> Iterator[TestClient]:
    """Yield a client of a local service without keys."""
    settings = Settings(data=tmp_path, results=tmp_path / "open", workers=workers)
    app = add_routes(create_app(settings, open_to_all=True))
    with TestClient(app, base_url="http://localhost:8000") as client:
        yield client


def add_key(client: TestClient, scope: Scope = "run", name: str = "survey") -> str:
    return client.app.state.service.keys.add(name, scope)


def start_session(client: TestClient, scope: Scope = "run") -> str:
    secret = add_key(client, scope)
    assert client.post("/session", json={"key": secret}).status_code == 200
    return secret


def test_session_cookie_is_protected(client: TestClient) -> None:
    answer = client.post("/session", json={"key": add_key(client)})
    assert answer.json() == {"keys_required": True, "name": "survey", "scope": "run"}
    attributes = {part.strip().lower() for part in answer.headers["Set-Cookie"].split(";")}
    assert {"httponly", "samesite=strict", "secure", "path=/"} <= attributes
    assert not any(part.startswith("domain") for part in attributes)
    assert client.get("/session").json() == answer.json()
    assert client.get("/thing").json() == "survey"
    assert client.delete("/session", headers={"Origin": SITE}).status_code == 204
    assert client.get("/session").json() == {"keys_required": True, "name": None, "scope": None}
    assert client.get("/thing").status_code == 401


def test_session_cookie_without_tls_is_not_secure(tmp_path: Path, workers: str) -> None:
    settings = Settings(data=tmp_path, results=tmp_path / "inner", workers=workers)
    with TestClient(create_app(settings), base_url="http://inner:8000") as client:
        answer = client.post("/session", json={"key": add_key(client)})
        assert "secure" not in answer.headers["Set-Cookie"].lower()
        assert client.get("/session").json()["name"] == "survey"


def test_wrong_key_starts_no_session(client: TestClient) -> None:
    answer = client.post("/session", json={"key": "talud-guess"})
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "Set-Cookie" not in answer.headers
    assert "guess" not in answer.text


def test_revoked_key_ends_its_sessions(client: TestClient) -> None:
    start_session(client)
    client.app.state.service.keys.revoke("survey")
    assert client.get("/thing").status_code == 401
    add_key(client)  # with the same name
    assert client.get("/thing").status_code == 401


def test_session_token_is_stored_as_digest(client: TestClient, tmp_path: Path) -> None:
    secret = start_session(client)
    token = client.cookies[SESSION_COOKIE]
    assert secret not in token
    assert len(token) >= 43  # 32 bytes
    assert client.get("/thing", headers={"X-API-Key": token}).status_code == 401
    kept = b"".join(path.read_bytes() for path in (tmp_path / "keys").glob("service.db*"))
    assert hashlib.sha256(token.encode()).hexdigest().encode() in kept
    assert token.encode() not in kept
    begin_again = client.post("/session", json={"key": secret}, headers={"Origin": SITE})
    assert begin_again.cookies[SESSION_COOKIE] != token
    assert (
        client.get("/thing", headers={"Cookie": f"{SESSION_COOKIE}={token}"}).status_code == 401
    )  # replaced by the new session


def test_ended_session_is_refused(client: TestClient) -> None:
    start_session(client)
    token = client.cookies[SESSION_COOKIE]
    assert client.delete("/session", headers={"Origin": SITE}).status_code == 204
    assert client.get("/thing", headers={"Cookie": f"{SESSION_COOKIE}={token}"}).status_code == 401


def test_session_expires(client: TestClient) -> None:
    start_session(client)
    assert (
        f"Max-Age={SESSION_HOURS * 3600}"
        in client.post("/session", json={"key": add_key(client, name="other")}, headers={"Origin": SITE}).headers[
            "Set-Cookie"
        ]
    )
    assert client.get("/thing").status_code == 200
    with client.app.state.service.database.engine.begin() as connection:
        connection.execute(update(PageSession).values(expires=utc_now() - timedelta(seconds=1)))
    # An open page sends further requests, which do not count as wrong keys.
    assert [client.get("/thing").status_code for _ in range(MAX_WRONG_KEYS + 5)] == [401] * (MAX_WRONG_KEYS + 5)
    client.post("/session", json={"key": add_key(client, name="third")}, headers={"Origin": SITE})
    with client.app.state.service.database.engine.connect() as connection:
        assert len(connection.execute(select(PageSession.digest)).all()) == 1  # expired sessions are deleted


def test_expired_key_is_refused_with_its_name(client: TestClient) -> None:
    secret = start_session(client)
    with client.app.state.service.database.engine.begin() as connection:
        connection.execute(update(Key).values(expires=datetime(2026, 1, 2, tzinfo=UTC)))
    assert client.get("/thing").status_code == 401
    assert client.get("/session").json()["name"] is None
    for answer in (
        client.get("/thing", headers={"X-API-Key": secret}),
        client.post("/session", json={"key": secret}, headers={"Origin": SITE}),
    ):
        assert answer.status_code == 401
        assert "the key of survey expired on 2026-01-02" in answer.json()["detail"]


@pytest.mark.parametrize(
    "header", [("Authorization", "Bearer {}"), ("authorization", "bearer {}"), ("X-API-Key", "{}")]
)
def test_key_is_accepted_in_headers(header: tuple[str, str], client: TestClient) -> None:
    name, form = header
    secret = add_key(client)
    assert client.get("/thing", headers={name: form.format(secret)}).json() == "survey"
    assert client.get("/thing", headers={name: form.format(secret[:-1])}).status_code == 401
    assert client.get("/thing", params={"key": secret, "talud_key": secret}).status_code == 401


def test_key_is_limited_to_its_scope(client: TestClient) -> None:
    headers = {"X-API-Key": add_key(client, "read")}
    assert client.get("/thing", headers=headers).status_code == 200
    answer = client.put("/thing", headers=headers, json={})
    assert answer.status_code == 403
    assert "this request requires run" in answer.json()["detail"]


CROSS_SITE_HEADERS = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "{site}"},
    {"Origin": "https://evil.example.com"},
    {"Origin": "null"},
    {"Origin": "{site}.evil.com"},
    {"Origin": "https://user@evil.example.com"},
    {"Origin": "https://["},
]
SAME_ORIGIN_HEADERS = [
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "{site}"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "{site}"},
]


def with_site(headers: dict[str, str], client: TestClient) -> dict[str, str]:
    site = str(client.base_url).rstrip("/")
    return {name: value.replace("{site}", site) for name, value in headers.items()}


@pytest.mark.parametrize("headers", [*CROSS_SITE_HEADERS, {}])
def test_cross_site_request_with_cookie_is_refused(headers: dict[str, str], client: TestClient) -> None:
    start_session(client)
    for method, path in (("PUT", "/thing"), ("POST", "/session"), ("DELETE", "/session"), ("PUT", "/uploads/a.tif")):
        answer = client.request(method, path, headers=with_site(headers, client), json={})
        assert answer.status_code == 403
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert client.get("/session").json()["name"] == "survey"


@pytest.mark.parametrize("headers", SAME_ORIGIN_HEADERS)
def test_same_origin_request_with_cookie_is_accepted(headers: dict[str, str], client: TestClient) -> None:
    start_session(client)
    assert client.put("/thing", headers=with_site(headers, client), json={}).json() == "survey"


def test_header_without_key_does_not_authorise_cookie(client: TestClient) -> None:
    start_session(client)
    for value in ("Basic dXNlcjpwdw==", "Bearer", "Bearer  ", "negotiate"):
        assert client.put("/thing", headers={"Authorization": value}, json={}).status_code == 403
    assert client.put("/thing", headers={"X-API-Key": ""}, json={}).status_code == 403


def test_cross_site_request_with_key_is_accepted(client: TestClient) -> None:
    headers = {"X-API-Key": add_key(client), "Origin": "https://portal.example.org"}
    assert client.put("/thing", headers=headers, json={}).json() == "survey"


@pytest.mark.parametrize("headers", CROSS_SITE_HEADERS)
def test_cross_site_request_without_keys_is_refused(headers: dict, open_client: TestClient) -> None:
    assert open_client.put("/thing", headers=with_site(headers, open_client), json={}).status_code == 403


@pytest.mark.slow
@pytest.mark.parametrize("headers", [*SAME_ORIGIN_HEADERS, {}])
def test_local_client_without_keys_is_admin(headers: dict, open_client: TestClient) -> None:
    assert open_client.get("/session").json() == {"keys_required": False, "name": "local", "scope": "admin"}
    assert open_client.put("/thing", headers=with_site(headers, open_client), json={}).json() == "local"


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("localhost:8000", 200), ("LOCALHOST", 200), ("127.0.0.1:9", 200), ("[::1]:8000", 200),
     ("evil.example.com", 421), ("evil.example.com:8000", 421), ("localhost.evil.example.com", 421),
     ("127.0.0.1.nip.io", 421), ("192.168.1.5:8000", 421), ("localhost@evil.example.com", 421), ("[::1", 421),
     ("0.0.0.0:8000", 421)],
)  # fmt: skip
def test_foreign_host_name_without_keys_is_refused(
    host: str, status: int, open_client: TestClient, client: TestClient
) -> None:
    assert open_client.get("/thing", headers={"Host": host}).status_code == status
    assert client.get("/session", headers={"Host": host}).status_code == 200  # accepted if keys are required


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For", "X-Forwarded-Proto", "x-forwarded-host", "X-Forwarded-Prefix", "X-Forwarded", "Forwarded",
     "Via", "X-Real-IP", "CF-Connecting-IP", "CF-Ray", "True-Client-IP", "X-Envoy-External-Address", "CDN-Loop",
     "X-Client-IP", "X-Original-URL", "Tailscale-User-Login", "X-Amzn-Trace-Id"],
)  # fmt: skip
def test_forwarded_request_without_keys_is_refused(header: str, open_client: TestClient, client: TestClient) -> None:
    for value in ("203.0.113.9", ""):
        for method, path in (("GET", "/thing"), ("PUT", "/thing"), ("GET", "/page/"), ("GET", "/health/live")):
            answer = open_client.request(method, path, headers={header: value})
            assert answer.status_code == 403
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert "TALUD_SERVICE_KEYS_REQUIRED=true" in answer.json()["detail"]
    # If keys are required, proxies are allowed.
    assert client.get("/thing", headers={header: "203.0.113.9", "X-API-Key": add_key(client)}).status_code == 200


def test_body_size_is_limited(client: TestClient) -> None:
    headers = {"X-API-Key": add_key(client)}
    large = b'{"a": "' + b"a" * MAX_BODY_BYTES + b'"}'

    def in_parts() -> Iterator[bytes]:
        yield from (large[start : start + 65536] for start in range(0, len(large), 65536))

    for body in (large, in_parts()):
        answer = client.put("/thing", headers=headers | {"Content-Type": "application/json"}, content=body)
        assert answer.status_code == 413
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert client.put("/thing", headers=headers, json={"a": "a" * (MAX_BODY_BYTES - 100)}).status_code == 200
    assert client.put("/uploads/there/a.tif", headers=headers, content=large).json() == len(large)


def test_wrong_keys_are_limited_but_valid_keys_accepted(client: TestClient) -> None:
    secret = add_key(client)
    statuses = [
        client.get("/thing", headers={"X-API-Key": f"guess {each}"}).status_code for each in range(MAX_WRONG_KEYS + 1)
    ]
    assert statuses == [401] * MAX_WRONG_KEYS + [429]
    for answer in (
        client.post("/session", json={"key": "guess"}),
        client.get("/session", headers={"Authorization": "Bearer guess"}),
    ):
        assert answer.status_code == 429
        assert 0 < int(answer.headers["Retry-After"]) <= WRONG_KEYS_WINDOW_SECONDS + 1
    assert client.get("/thing", headers={"X-API-Key": secret}).status_code == 200
    assert client.get("/thing").status_code == 401


@contextmanager
def client_from(address: str, tmp_path: Path, workers: str, **others: object) -> Iterator[TestClient]:
    """Yield a client with a given address, connected to a service.

    The service has keys and the proxy 10.0.0.5.
    """
    settings = Settings(data=tmp_path, results=tmp_path / address, workers=workers, **others)
    app = add_routes(create_app(settings))
    with TestClient(app, base_url="http://inner:8080", client=(address, 5000)) as client:
        yield client


def send_wrong_keys(client: TestClient, forwarded: str) -> list[int]:
    return [
        client.get("/thing", headers={"X-API-Key": "guess", "X-Forwarded-For": forwarded.format(number)}).status_code
        for number in range(MAX_WRONG_KEYS + 1)
    ]


LIMITED, UNLIMITED = [401] * MAX_WRONG_KEYS + [429], [401] * (MAX_WRONG_KEYS + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "proxies", "forwarded", "expected"),
    [
        ("203.0.113.9", (), "198.51.100.{}", LIMITED),  # an address invented by the client
        ("127.0.0.1", (), "198.51.100.{}", LIMITED),
        ("203.0.113.9", ("10.0.0.5",), "198.51.100.{}", LIMITED),  # not through the proxy
        ("10.0.0.5", ("10.0.0.5",), "198.51.100.{}, 203.0.113.9", LIMITED),  # the last address was added by the proxy
        ("10.0.0.5", ("10.0.0.0/24",), "198.51.100.{}, 203.0.113.9, 10.0.0.7", LIMITED),  # two proxies
        ("10.0.0.5", ("10.0.0.5",), "203.0.113.{}", UNLIMITED),  # different clients of a proxy
        ("2001:db8::5", ("2001:db8::/64",), "2001:db8:1:{}::1", UNLIMITED),
    ],
)
def test_wrong_keys_are_counted_by_address_behind_proxy(
    address: str, proxies: tuple, forwarded: str, expected: list[int], tmp_path: Path, workers: str
) -> None:
    with client_from(address, tmp_path, workers, proxies=proxies) as client:
        assert send_wrong_keys(client, forwarded) == expected


@pytest.mark.parametrize("public", ["", "https://maps.example.org", "https://example.org/talud/"])
def test_links_use_public_address_for_any_host_header(public: str, tmp_path: Path, workers: str) -> None:
    base = public.rstrip("/")
    with client_from("203.0.113.9", tmp_path, workers, public_url=public) as client:
        own = {"X-API-Key": add_key(client)} | {"Host": "evil.example.com"}
        assert client.get("/", headers=own).json()["links"][0]["href"] == f"{base}/"
        links = client.get("/jobs?limit=5&offset=0", headers=own).json()["links"]
        assert links[0]["href"] == f"{base}/jobs?limit=5&offset=0"
        described = client.get("/processes/map-landslides", headers=own).json()["links"]
        assert described[0]["href"] == f"{base}/processes/map-landslides/execution"
        for path in ("/jobs/", "/processes/", "/"):
            answer = client.get(path, headers=own | {"Accept": "text/html"}, follow_redirects=False)
            assert answer.status_code == 307
            assert answer.headers["Location"].startswith(f"{base}/")
            assert "evil" not in str(answer.headers)
        answer = client.post("/session", json={"key": own["X-API-Key"]})
        assert ("secure" in answer.headers["Set-Cookie"].lower()) == public.startswith("https")
        if public:
            cookie = f"{SESSION_COOKIE}={answer.cookies[SESSION_COOKIE]}"  # httpx would send it only by TLS
            origin = {"Origin": "https://" + public.split("/")[2], "Cookie": cookie}
            assert client.put("/thing", headers=origin, json={}).status_code == 200


def test_login_throttle_counts_by_network_and_forgets() -> None:
    moment = [0.0]
    throttle = LoginThrottle(clock=lambda: moment[0])
    assert [throttle.count_failure("2001:db8::1") for _ in range(MAX_WRONG_KEYS)] == [0] * MAX_WRONG_KEYS
    assert throttle.count_failure("2001:db8::ffff") > 0
    assert (
        throttle.count_failure("2001:db8:1::1")
        == throttle.count_failure("192.0.2.1")
        == throttle.count_failure("::ffff:192.0.2.1")
        == 0
    )
    moment[0] = WRONG_KEYS_WINDOW_SECONDS
    assert throttle.count_failure("2001:db8::1") == 0


def test_refused_response_has_security_headers(open_client: TestClient) -> None:
    refused = open_client.get("/thing", headers={"Host": "evil.example.com"})
    for answer in (refused, open_client.get("/missing"), open_client.get("/thing")):
        assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_serving_modules_import_no_unsafe_deserialiser() -> None:
    """Pickle, NumPy files, eval, YAML and XML are forbidden."""
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "eval", "exec", "xml"}
    for path in Path(talud.serving.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0], *(alias.name for alias in node.names)}
            elif isinstance(node, ast.Call):
                names = {node.func.id} if isinstance(node.func, ast.Name) else set()
                assert not any(keyword.arg in ("allow_pickle", "shell") for keyword in node.keywords), path
                if isinstance(node.func, ast.Attribute) and node.func.attr in ("load", "loads", "fromfile"):
                    assert ast.unparse(node.func.value) not in ("np", "numpy", "torch"), path
            assert not names & forbidden, f"{path}: {names & forbidden}"


def test_internal_error_is_problem_response_and_counted(client: TestClient) -> None:
    @client.app.get("/broken")
    def broken() -> None:
        raise ZeroDivisionError("a secret")

    own = {"X-API-Key": add_key(client)}
    answer = client.get("/broken", headers=own)
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    figures = client.get("/metrics", headers=own).text
    assert 'talud_request_seconds_count{method="GET",route="/broken",status="500"} 1.0' in figures
