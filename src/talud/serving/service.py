"""The parts of a running service, and the keys that its routes require."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from talud.serving.database import Database, utc_now
from talud.serving.executor import Executor
from talud.serving.jobs import JobStore
from talud.serving.keys import LOCAL_KEY, KeyStore, SessionStore
from talud.serving.monitoring import Metrics
from talud.serving.problems import Problem
from talud.serving.request_resolution import ModelLookup, RequestResolver
from talud.serving.security import SESSION_COOKIE, LoginThrottle, key_in_headers
from talud.serving.settings import Settings
from talud.serving.storage import JobFolders, UploadStore, lock_results, remove_unfinished_uploads
from talud.serving.tables import Key, Scope


@dataclass(frozen=True)
class Service:
    """The parts of a running service.

    Attributes:
        settings: of the agency.
        database: that is open.
        jobs: in it.
        keys: in it.
        sessions: of the page, in it.
        uploads: in it.
        models: of the registry.
        job_folders: where the files of jobs lie.
        resolver: what takes requests in.
        executor: what carries jobs out.
        metrics: what it counts and measures.
        open_to_all: whether no key is asked for.
        login_throttle: wrong keys of late.
    """

    settings: Settings
    database: Database
    jobs: JobStore
    keys: KeyStore
    sessions: SessionStore
    uploads: UploadStore
    models: ModelLookup
    job_folders: JobFolders
    resolver: RequestResolver
    executor: Executor
    metrics: Metrics
    open_to_all: bool
    login_throttle: LoginThrottle = field(default_factory=LoginThrottle)

    @classmethod
    @contextmanager
    def start(cls, settings: Settings, *, open_to_all: bool) -> Iterator[Service]:
        """Yield a service that carries out jobs within the block.

        Raises:
            ParamsError: the database's URL cannot be used.
            OutputError: the database cannot be opened, or another service uses the results.
        """
        with lock_results(settings.results), Database.open(settings.database_url) as database:
            remove_unfinished_uploads(settings.results)
            jobs, job_folders, models = JobStore(database), JobFolders(settings.results / "jobs"), ModelLookup.current()
            resolver = RequestResolver(settings, jobs, job_folders, models)
            metrics = Metrics()
            metrics.add_live_gauges(jobs, settings.results)
            executor = Executor(settings, jobs, job_folders, resolver, metrics)
            with executor.running():
                yield cls(
                    settings=settings,
                    database=database,
                    jobs=jobs,
                    keys=KeyStore(database),
                    sessions=SessionStore(database),
                    uploads=UploadStore(database, settings.upload_bytes_per_key),
                    models=models,
                    job_folders=job_folders,
                    resolver=resolver,
                    executor=executor,
                    metrics=metrics,
                    open_to_all=open_to_all,
                )


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


CurrentService = Annotated[Service, Depends(_service)]


def client_key(request: Request, service: Service) -> Key | None:
    """Return the key of a request; without required keys, a local admin key.

    Raises:
        Problem: too many wrong keys came from there.
    """
    found = None
    if secret := key_in_headers(request):
        found = find_key(secret, request, service)
    elif token := request.cookies.get(
        SESSION_COOKIE
    ):  # not counted: a page that is open asks on after its session ended
        found = service.sessions.find_key(token)
    if found is None and service.open_to_all:
        return Key(id=LOCAL_KEY, name=LOCAL_KEY, digest="", scope="admin", created=utc_now())
    return found


def find_key(secret: str, request: Request, service: Service) -> Key | None:
    """Return the key of a secret; a valid one passes the throttle of wrong keys.

    Raises:
        Problem: it has expired, or is wrong, as were too many before it.
    """
    found = service.keys.find(secret)
    if found and found.expires and found.expired:
        raise Problem(
            401,
            f"the key of {found.name} expired on {found.expires:%Y-%m-%d}; the service's operator can make another: "
            "talud keys revoke, then talud keys add",
            headers={"WWW-Authenticate": "Bearer"},
        )
    if found is None and not service.open_to_all:
        wait = service.login_throttle.count_failure(request.client.host if request.client else "")
        if wait:
            raise Problem(429, f"too many wrong keys; try again in {wait} s", headers={"Retry-After": str(wait)})
    return found


def _require_scope(scope: Scope) -> Callable[[Request, Service], Key]:
    def check(request: Request, service: CurrentService) -> Key:
        key = client_key(request, service)
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


ReadKey = Annotated[Key, Depends(_require_scope("read"))]
RunKey = Annotated[Key, Depends(_require_scope("run"))]
