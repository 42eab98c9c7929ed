"""What a running service has at hand, and who may ask it for what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

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
    """

    settings: Settings
    database: Database
    jobs: JobStore
    keys: KeyStore
    open_to_all: bool


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Running = Annotated[Service, Depends(_service)]


def presented(request: Request) -> str | None:
    """The secret that a request brings: in a header, or in the page's cookie."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.casefold() == "bearer" and secret:
        return secret.strip()
    return request.headers.get("X-API-Key") or request.cookies.get(COOKIE)


def holder(request: Request, service: Service) -> Key | None:
    """Whose request it is; where no key is asked for, whoever is at this machine may do all."""
    secret = presented(request)
    found = service.keys.find(secret) if secret else None
    return Key("local", "admin", now()) if found is None and service.open_to_all else found


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
