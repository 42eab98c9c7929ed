"""What a running service has at hand, and who may ask it for what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from talud.serving.database import Database, now
from talud.serving.executor import Executor
from talud.serving.intake import Intake
from talud.serving.jobs import JobStore
from talud.serving.keys import Key, KeyStore, Scope
from talud.serving.maps import Maps
from talud.serving.metrics import Metrics
from talud.serving.models import Models
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
        models: of the registry.
        maps: where the files of jobs lie.
        intake: what takes requests in.
        executor: what carries jobs out.
        metrics: what it counts and measures.
        open_to_all: whether no key is asked for.
    """

    settings: Settings
    database: Database
    jobs: JobStore
    keys: KeyStore
    models: Models
    maps: Maps
    intake: Intake
    executor: Executor
    metrics: Metrics
    open_to_all: bool

    @classmethod
    @contextmanager
    def started(cls, settings: Settings, *, open_to_all: bool) -> Iterator[Service]:
        """A service that carries out its jobs within the block.

        Raises:
            ParamsError: the database's URL cannot be used.
            OutputError: the database cannot be opened.
        """
        with Database.opened(settings.database_url) as database:
            jobs, maps, models = JobStore(database), Maps(settings.results / "jobs"), Models.here()
            intake = Intake(settings, jobs, maps, models)
            metrics = Metrics()
            metrics.watch(jobs, settings.results)
            executor = Executor(settings, jobs, maps, intake, metrics)
            with executor.at_work():
                yield cls(
                    settings, database, jobs, KeyStore(database), models, maps, intake, executor, metrics, open_to_all
                )  # fmt: skip


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
