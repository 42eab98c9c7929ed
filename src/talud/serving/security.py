"""Request checks that apply to all routes.

The checks protect against three attacks:

- Cross-site requests: a browser attaches the page's cookie to requests of other sites, and can reach a local service
  without keys. Requests that change something must come from the page, according to the headers of the browser.
- DNS rebinding: a site can point its own host name to this machine. Without keys, the service only answers requests to
  the names of its own machine.
- Exposure by a proxy: a proxy on this machine would give everybody access to a service without keys. Such a service
  refuses forwarded requests.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from talud.serving import problems
from talud.serving.remote import MIN_BYTES_PER_SECOND, RATE_WINDOW_SECONDS
from talud.serving.settings import ENV_PREFIX, LOOPBACK_HOSTS

SESSION_COOKIE = "talud_session"
MAX_BODY_BYTES = 1_000_000  # except uploads, which have another limit
UPLOADS_PATH = "/uploads/"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # methods that change nothing (RFC 9110)
# Headers that proxies, load balancers and tunnels add to requests, and prefixes of such headers.
PROXY_HEADERS = {
    "forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-original-forwarded-for",
    "x-original-host", "x-original-url", "x-rewrite-url", "x-proxyuser-ip", "x-envoy-external-address", "client-ip",
    "true-client-ip", "fastly-client-ip", "cdn-loop", "x-appengine-user-ip", "x-arr-ssl", "x-azure-clientip",
    "x-amzn-trace-id", "fly-client-ip", "x-nf-client-connection-ip",
}  # fmt: skip
PROXY_HEADER_PREFIXES = ("x-forwarded", "cf-", "tailscale-")


@dataclass(frozen=True)
class RequestChecks:
    """ASGI middleware that refuses unsafe requests.

    Attributes:
        app: application behind the checks.
        open_to_all: whether clients need no API key.
    """

    app: ASGIApp
    open_to_all: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward or refuse a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        if {"content-length", "transfer-encoding"} <= {name.casefold() for name in request.headers}:
            # A proxy may find another end of this body, and take the rest for the next request (request smuggling).
            closing = {"Connection": "close"}
            await problems.problem_response(400, _TWO_LENGTHS, headers=closing)(scope, receive, send)
        elif reason := _refusal_reason(request, self.open_to_all):
            await problems.problem_response(*reason)(scope, receive, send)
        elif scope["path"].startswith(UPLOADS_PATH):
            await self.app(scope, _with_minimum_rate(receive), send)
        else:
            await self.app(scope, _with_size_limit(_with_minimum_rate(receive)), send)


def key_in_headers(request: Request) -> str | None:
    """Return the API key in a request's headers, or None.

    Other sites cannot make a browser send these headers.
    """
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.casefold() == "bearer" and secret.strip():
        return secret.strip()
    return request.headers.get("X-API-Key") or None


def _refusal_reason(request: Request, open_to_all: bool) -> tuple[int, str] | None:
    """Return the status code and reason if a request must be refused."""
    headers = request.headers
    if open_to_all and _host_name(headers) not in LOOPBACK_HOSTS:
        return 421, "this service requires no key and only answers requests to its own machine; use localhost"
    if open_to_all and (passed_on := _proxy_header(headers)):
        return 403, (
            f"this request came through a proxy (header {passed_on}), but this service requires no key; to use a "
            f"proxy, set {ENV_PREFIX}KEYS_REQUIRED=true and restart the service"
        )
    if not request.url.path.startswith(UPLOADS_PATH) and _content_length(headers) > MAX_BODY_BYTES:
        return 413, _TOO_LARGE
    if request.method not in SAFE_METHODS and not key_in_headers(request) and not _is_same_origin(request):
        return 403, "this request comes from another site; use the page, or send a key in Authorization: Bearer KEY"
    return None


def _is_same_origin(request: Request) -> bool:
    """Check if a request comes from the service's page or from no browser."""
    if site := request.headers.get("Sec-Fetch-Site"):
        return site in ("same-origin", "none")
    if origin := request.headers.get("Origin"):
        own = request.headers.get("Host", "nowhere"), urlsplit(request.app.state.address.public).netloc
        return origin.casefold().partition("://")[2] in {name.casefold() for name in own if name}
    return SESSION_COOKIE not in request.cookies


def _proxy_header(headers: Headers) -> str | None:
    """Return the first header that was added by a proxy, or None."""
    names = (name.casefold() for name in headers)
    return next((name for name in names if name in PROXY_HEADERS or name.startswith(PROXY_HEADER_PREFIXES)), None)


def _host_name(headers: Headers) -> str:
    """Return the host name of a request without the port."""
    try:
        return urlsplit(f"//{headers.get('Host', '')}").hostname or ""
    except ValueError:
        return ""


def _content_length(headers: Headers) -> int:
    stated = headers.get("Content-Length", "0")
    return int(stated) if re.fullmatch("[0-9]{1,18}", stated) else MAX_BODY_BYTES + 1


def _with_size_limit(receive: Receive) -> Receive:
    """Return a receiver that refuses bodies over the size limit."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return limited


def _with_minimum_rate(receive: Receive) -> Receive:
    """Return a receiver that refuses bodies below the minimum rate.

    Only the time spent waiting for the client counts.
    """
    received, waited, is_whole = 0, 0.0, False

    async def paced() -> Message:
        nonlocal received, waited, is_whole
        if is_whole:  # the next message is the end of the connection
            return await receive()
        if received >= MIN_BYTES_PER_SECOND * RATE_WINDOW_SECONDS:
            received, waited = 0, 0.0
        began = time.monotonic()
        try:
            async with asyncio.timeout(RATE_WINDOW_SECONDS - waited):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, _TOO_SLOW, {"Connection": "close"}) from error
        waited += time.monotonic() - began
        received += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        return message

    return paced


_TOO_SLOW = (
    f"the body arrives too slowly, with less than {MIN_BYTES_PER_SECOND:,} bytes per second over "
    f"{RATE_WINDOW_SECONDS} s"
)
_TWO_LENGTHS = "the request states its length twice, by Content-Length and by Transfer-Encoding; send one of them"
_TOO_LARGE = f"the body is larger than {MAX_BODY_BYTES:,} bytes"


HEADER_TIMEOUT_SECONDS = 20.0  # from the connection, or the first byte of a further request, to the end of the headers


class HeaderTimeoutProtocol(H11Protocol):
    """HTTP/1.1 protocol that closes connections with slow headers."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Process received data.

        The timeout starts with a request and stops when its headers are complete.
        """
        super().data_received(data)
        if self._answering():
            self._forget()
        elif self._limit is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timeout."""
        self._forget()
        super().connection_lost(exc)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._limit = self.loop.call_later(HEADER_TIMEOUT_SECONDS, self._expire)

    def _forget(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _expire(self) -> None:
        self._limit = None
        if not self._answering():
            self.transport.close()


@dataclass(frozen=True)
class PublicAddress:
    """Public address of the service, for links.

    Clients control the header Host: links made from it would lead to any site that a client, or an attacker of a shared
    cache, chooses. Without keys, the header was checked to name this machine.

    Attributes:
        public: public URL without a trailing slash; empty if it is not set.
        open_to_all: whether clients need no API key.
    """

    public: str
    open_to_all: bool

    def base(self, request: Request) -> str:
        """Return the base URL of links; if empty, links are relative."""
        if self.public or not self.open_to_all:
            return self.public
        return str(request.base_url).rstrip("/")

    def rewrite_link(self, request: Request, link: str) -> str:
        """Return a link with the public address instead of the header Host."""
        own = str(request.base_url).rstrip("/")
        return f"{self.base(request)}{link.removeprefix(own)}" if link.startswith(f"{own}/") else link

    def uses_tls(self, request: Request) -> bool:
        """Check if clients reach the service by TLS."""
        return (self.public or request.url.scheme).startswith("https")


log = logging.getLogger("talud.service")
MAX_WRONG_KEYS = 10  # of a network, within the following time
WRONG_KEYS_WINDOW_SECONDS = 60.0
MAX_TRACKED_NETWORKS = 10_000  # the most recent ones


@dataclass(frozen=True)
class LoginThrottle:
    """Limit of wrong keys for each network.

    Attributes:
        clock: function that returns the current time in seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _failures: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count_failure(self, address: str) -> int:
        """Count a wrong key.

        Returns:
            The number of seconds for which the address must wait, or 0.
        """
        now, network = self.clock(), _network(address)
        with self._lock:
            since, count = self._failures.pop(network, (now, 0))
            if now - since >= WRONG_KEYS_WINDOW_SECONDS:
                since, count = now, 0
            self._failures[network] = since, count + 1
            if len(self._failures) > MAX_TRACKED_NETWORKS:
                self._failures.popitem(last=False)
        if count == MAX_WRONG_KEYS:  # log only once
            log.warning(
                "%s: %s wrong keys within %d s; further keys are refused", network, count, WRONG_KEYS_WINDOW_SECONDS
            )
        return 0 if count < MAX_WRONG_KEYS else int(since + WRONG_KEYS_WINDOW_SECONDS - now) + 1


def _network(address: str) -> str:
    """Return an IPv4 address, or the network of an IPv6 address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a Unix socket or a test client
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), 64), strict=False))
