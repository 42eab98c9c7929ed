"""Running service and the authentication of its requests."""

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
    """Parts of a running service.

    Attributes:
        settings: settings of the service.
        database: open database.
        jobs: jobs in the database.
        keys: API keys in the database.
        sessions: sessions of the review page in the database.
        uploads: owners and sizes of uploads in the database.
        models: models of the registry.
        job_folders: folders of the jobs.
        resolver: resolver of rasters and models.
        executor: executor of the jobs.
        metrics: metrics for Prometheus.
        open_to_all: whether clients need no API key.
        login_throttle: limit of wrong keys for each client.
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
        """Start a service, and stop it after the block.

        Raises:
            ParamsError: the URL of the database is invalid.
            BusyError: another service uses the results folder.
            OutputError: the database cannot be opened, or the folder cannot be written to.
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
    """Return the API key of a request, or None.

    If keys are not required, a client without a key gets a local key with the scope admin.

    Raises:
        Problem: the client has sent too many wrong keys.
    """
    found = None
    if secret := key_in_headers(request):
        found = find_key(secret, request, service)
    elif token := request.cookies.get(SESSION_COOKIE):
        # Expired tokens are not counted as wrong keys: an open page still sends requests after its session ended.
        found = service.sessions.find_key(token)
    if found is None and service.open_to_all:
        return Key(id=LOCAL_KEY, name=LOCAL_KEY, digest="", scope="admin", created=utc_now())
    return found


def find_key(secret: str, request: Request, service: Service) -> Key | None:
    """Return the key with a secret, or None.

    Valid keys are accepted even after too many wrong ones.

    Raises:
        Problem: the key has expired, or the client has sent too many wrong keys.
    """
    found = service.keys.find(secret)
    if found and found.expires and found.expired:
        raise Problem(
            401,
            f"the key of {found.name} expired on {found.expires:%Y-%m-%d}; the operator can create a new one: "
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
                "this service requires an API key: send the header Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not key.allows(scope):
            raise Problem(403, f"the key of {key.name} has the scope {key.scope}; this request requires {scope}")
        return key

    return check


ReadKey = Annotated[Key, Depends(_require_scope("read"))]
RunKey = Annotated[Key, Depends(_require_scope("run"))]
