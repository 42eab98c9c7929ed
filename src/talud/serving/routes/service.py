"""Routes of the service itself: health, metrics, models, and the page's session."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from talud.contract import FlatContract
from talud.serving.keys import SESSION_HOURS
from talud.serving.problems import Problem, described
from talud.serving.security import COOKIE
from talud.serving.service import Reader, Running, holder, key_of
from talud.serving.tables import Scope

router = APIRouter()


class Health(BaseModel):
    """The state of the service."""

    status: str = "ok"


@router.get("/health/live", tags=["health"])
def live() -> Health:
    """Answer if the process runs."""
    return Health()


@router.get("/health/ready", tags=["health"], responses=described(503))
def ready(service: Running) -> Health:
    """Answer if the database answers and workers are connected."""
    try:
        with service.database.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        raise Problem(503, "the database does not answer") from error
    if not service.executor.slots:
        raise Problem(503, "no worker is there yet")
    return Health()


@router.get("/metrics", tags=["health"], response_class=PlainTextResponse, responses=described(401))
def metrics(service: Running, _: Reader) -> Response:
    """Return figures for Prometheus; a key of scope read is the bearer token."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


class RegisteredModel(BaseModel):
    """A registered version."""

    name: str
    version: str
    aliases: list[str]
    uri: str = Field(description="as MLflow names it")
    created: str
    contract: FlatContract


class ModelList(BaseModel):
    """Registered versions that an alias points to."""

    models: list[RegisteredModel]


@router.get("/models", tags=["models"], responses=described(401, 422))
def models(service: Running, _: Reader) -> ModelList:
    """Return the versions with an alias, with their contracts."""
    return ModelList(
        models=[
            RegisteredModel(
                name=version.name,
                version=version.version,
                aliases=sorted(version.aliases),
                uri=version.uri,
                created=version.created,
                contract=FlatContract.of(candidate.contract),
            )
            for version, candidate in service.models.aliased()
        ]
    )


class Entry(BaseModel):
    """The key with which a session begins."""

    key: str = Field(min_length=1, max_length=200)


class Session(BaseModel):
    """The client of a session, and its scope."""

    keys_required: bool
    name: str | None
    scope: Scope | None


@router.get("/session", tags=["session"], responses=described(429))
def show(request: Request, service: Running) -> Session:
    """Return the client of a request, by its key."""
    key = holder(request, service)
    return Session(keys_required=not service.open_to_all, name=key and key.name, scope=key and key.scope)


@router.post("/session", tags=["session"], responses=described(401, 413, 429))
def begin(entry: Entry, request: Request, response: Response, service: Running) -> Session:
    """Begin a session with a key."""
    key = key_of(entry.key, request, service)
    if key is None:
        raise Problem(401, "this key opens nothing; whoever runs the service makes keys: talud keys add NAME")
    if earlier := request.cookies.get(COOKIE):
        service.sessions.end(earlier)
    response.set_cookie(
        COOKIE,
        service.sessions.begin(key),
        max_age=SESSION_HOURS * 3600,
        httponly=True,
        samesite="strict",
        secure=request.app.state.address.secure(request),
    )
    return Session(keys_required=not service.open_to_all, name=key.name, scope=key.scope)


@router.delete("/session", tags=["session"], status_code=204)
def end(request: Request, response: Response, service: Running) -> None:
    """End the session."""
    if token := request.cookies.get(COOKIE):
        service.sessions.end(token)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
