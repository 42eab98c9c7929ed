"""What a running service has at hand, and who may ask it for what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from talud.serving.attempts import Attempts
from talud.serving.database import Database, now
from talud.serving.jobs import JobStore
from talud.serving.keys import Key, KeyStore, Scope
from talud.serving.problems import Problem
from talud.serving.settings import Settings

COOKIE = "talud_key"


@dataclass(frozen=True)
class Service:
    """What a running service has at hand.

    Attributes:
        settings: of the agency.
        database: that is open.
        jobs: in it.
        keys: in it.
        open_to_all: whether no key is asked for.
        attempts: wrong keys of late.
    """

    settings: Settings
    database: Database
    jobs: JobStore
    keys: KeyStore
    open_to_all: bool
    attempts: Attempts = field(default_factory=Attempts)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Running = Annotated[Service, Depends(_service)]


def key_in_headers(request: Request) -> str | None:
    """The secret that a request brings in a header, which no other site can have a browser send."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.casefold() == "bearer" and secret.strip():
        return secret.strip()
    return request.headers.get("X-API-Key") or None


def holder(request: Request, service: Service) -> Key | None:
    """Whose request it is; where no key is asked for, whoever is at this machine may do all.

    Raises:
        Problem: too many wrong keys came from there.
    """
    secret = key_in_headers(request) or request.cookies.get(COOKIE)
    found = key_of(secret, request, service) if secret else None
    return Key("local", "admin", now()) if found is None and service.open_to_all else found


def key_of(secret: str, request: Request, service: Service) -> Key | None:
    """The key of that secret; a right one opens however many wrong ones came from there, whom it may share it with.

    Raises:
        Problem: it is wrong, as were too many before it.
    """
    found = service.keys.find(secret)
    if found is None and not service.open_to_all:
        wait = service.attempts.failed(request.client.host if request.client else "")
        if wait:
            raise Problem(429, f"too many wrong keys; try again in {wait} s", headers={"Retry-After": str(wait)})
    return found


def _needs(scope: Scope) -> Callable[[Request, Service], Key]:
    def check(request: Request, service: Running) -> Key:
        key = holder(request, service)
        if key is None:
            raise Problem(
                401,
                "this service asks for an API key: Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not key.allows(scope):
            raise Problem(403, f"the key of {key.name} has the scope {key.scope}; this takes {scope}")
        return key

    return check


Reader = Annotated[Key, Depends(_needs("read"))]
Runner = Annotated[Key, Depends(_needs("run"))]
Admin = Annotated[Key, Depends(_needs("admin"))]
