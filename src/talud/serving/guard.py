"""What no request gets past, whatever it asks for: bodies without end, and requests that other sites make in disguise.

A browser sends the page's cookie with what other sites have it send, and reaches a service on its own machine that
asks for no key. It says of each request which site it comes from, so that what changes something can be told apart. A
site can also give its own name the address of this machine (DNS rebinding): where no key is asked for, only the names
of this machine are answered to. A proxy on this machine lets all the world in there: what came by one is refused.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from talud.serving import problems
from talud.serving.remote import LEAST_BYTES_PER_SECOND, RATE_SECONDS
from talud.serving.service import COOKIE, key_in_headers
from talud.serving.settings import LOOPBACK, PREFIX

LARGEST_BODY = 1_000_000  # bytes; uploads have a limit of their own
UPLOADS = "/uploads/"
HARMLESS = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
# Headers that proxies, load balancers and tunnels add to requests, like all that begin as the second.
OF_PROXIES = {
    "forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-original-forwarded-for",
    "x-original-host", "x-original-url", "x-rewrite-url", "x-proxyuser-ip", "x-envoy-external-address", "client-ip",
    "true-client-ip", "fastly-client-ip", "cdn-loop", "x-appengine-user-ip", "x-arr-ssl", "x-azure-clientip",
    "x-amzn-trace-id", "fly-client-ip", "x-nf-client-connection-ip",
}  # fmt: skip
BEGIN_OF_PROXIES = ("x-forwarded", "cf-", "tailscale-")


@dataclass(frozen=True)
class Guard:
    """An ASGI application in front of another.

    Attributes:
        app: the other.
        open_to_all: whether no key is asked for.
    """

    app: ASGIApp
    open_to_all: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        if {"content-length", "transfer-encoding"} <= {name.casefold() for name in request.headers}:
            # A proxy may see another end of this body, and take the rest for the next client's request.
            closing = {"Connection": "close"}
            await problems.answer(400, _TWO_LENGTHS, headers=closing)(scope, receive, send)
        elif reason := _refusal(request, self.open_to_all):
            await problems.answer(*reason)(scope, receive, send)
        elif scope["path"].startswith(UPLOADS):
            await self.app(scope, _paced(receive), send)
        else:
            await self.app(scope, _limited(_paced(receive)), send)


def _refusal(request: Request, open_to_all: bool) -> tuple[int, str] | None:
    """Why a request is refused, with its status."""
    headers = request.headers
    if open_to_all and _host_name(headers) not in LOOPBACK:
        return 421, "this service asks for no key, and answers to the names of its own machine alone: localhost"
    if open_to_all and (passed_on := _of_a_proxy(headers)):
        return 403, (
            f"this request came through a proxy (header {passed_on}), but this service asks for no key; behind one, "
            f"set {PREFIX}KEYS_REQUIRED=true and start it again"
        )
    if not request.url.path.startswith(UPLOADS) and _length(headers) > LARGEST_BODY:
        return 413, _TOO_LARGE
    if request.method not in HARMLESS and not key_in_headers(request) and not _of_the_page(request):
        return 403, "this request comes from another site; use the page, or send a key: Authorization: Bearer KEY"
    return None


def _of_the_page(request: Request) -> bool:
    """Whether a request that changes something comes from the service's own page, or from no browser at all."""
    if site := request.headers.get("Sec-Fetch-Site"):
        return site in ("same-origin", "none")
    if origin := request.headers.get("Origin"):
        own = request.headers.get("Host", "nowhere"), urlsplit(request.app.state.address.public).netloc
        return origin.casefold().partition("://")[2] in {name.casefold() for name in own if name}
    return COOKIE not in request.cookies


def _of_a_proxy(headers: Headers) -> str | None:
    """Return the first header that only proxies add, or None."""
    names = (name.casefold() for name in headers)
    return next((name for name in names if name in OF_PROXIES or name.startswith(BEGIN_OF_PROXIES)), None)


def _host_name(headers: Headers) -> str:
    """The name, without its port, by which a client calls the service."""
    try:
        return urlsplit(f"//{headers.get('Host', '')}").hostname or ""
    except ValueError:
        return ""


def _length(headers: Headers) -> int:
    stated = headers.get("Content-Length", "0")
    return int(stated) if re.fullmatch("[0-9]{1,18}", stated) else LARGEST_BODY + 1


def _limited(receive: Receive) -> Receive:
    """The parts of a body, until they are too many, whatever the request said of its length."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > LARGEST_BODY:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return limited


def _paced(receive: Receive) -> Receive:
    """Return a receiver that refuses a body whose parts arrive too slowly.

    Only the time spent waiting for a part counts.
    """
    received, waited, is_whole = 0, 0.0, False

    async def paced() -> Message:
        nonlocal received, waited, is_whole
        if is_whole:  # what is awaited now is the end of the connection
            return await receive()
        if received >= LEAST_BYTES_PER_SECOND * RATE_SECONDS:
            received, waited = 0, 0.0
        began = time.monotonic()
        try:
            async with asyncio.timeout(RATE_SECONDS - waited):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, _TOO_SLOW, {"Connection": "close"}) from error
        waited += time.monotonic() - began
        received += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        return message

    return paced


_TOO_SLOW = (
    f"the body comes too slowly, with less than {LEAST_BYTES_PER_SECOND:,} bytes per second over {RATE_SECONDS} s"
)
_TWO_LENGTHS = "the request states its length twice, by Content-Length and by Transfer-Encoding; send one of them"
_TOO_LARGE = f"the body is larger than {LARGEST_BODY:,} bytes"
