"""Routes for health, metrics, models and sessions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from talud.contract import FlatContract
from talud.serving.keys import SESSION_HOURS
from talud.serving.problems import Problem, problem_responses
from talud.serving.security import SESSION_COOKIE
from talud.serving.service import CurrentService, ReadKey, client_key, find_key
from talud.serving.tables import Scope

router = APIRouter()


class Health(BaseModel):
    """Health of the service."""

    status: Annotated[str, Field(description="ok")] = "ok"


@router.get("/health/live", tags=["health"])
def get_liveness() -> Health:
    """Report that the process is running."""
    return Health()


@router.get("/health/ready", tags=["health"], responses=problem_responses(503))
def get_readiness(service: CurrentService) -> Health:
    """Report whether the database answers and workers are connected."""
    try:
        with service.database.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        raise Problem(503, "the database does not answer") from error
    if not service.executor.slots:
        raise Problem(503, "no worker is connected yet")
    return Health()


@router.get("/metrics", tags=["health"], response_class=PlainTextResponse, responses=problem_responses(401))
def get_metrics(service: CurrentService, _: ReadKey) -> Response:
    """Return metrics for Prometheus.

    Prometheus sends an API key with the scope read as bearer token.
    """
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


class RegisteredModel(BaseModel):
    """Registered version of a model."""

    name: Annotated[str, Field(description="name of the model")]
    version: Annotated[str, Field(description="version of the model")]
    aliases: Annotated[list[str], Field(description="aliases of the version, such as champion")]
    uri: str = Field(description="URI of the version in MLflow")
    created: Annotated[str, Field(description="time of the registration")]
    contract: Annotated[FlatContract, Field(description="contract of the model")]


class ModelList(BaseModel):
    """Registered versions that have an alias."""

    models: Annotated[list[RegisteredModel], Field(description="registered versions that have an alias")]


@router.get("/models", tags=["models"], responses=problem_responses(401, 422))
def list_models(service: CurrentService, _: ReadKey) -> ModelList:
    """Return the registered versions that have an alias, with their contracts."""
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
            for version, candidate in service.models.with_alias()
        ]
    )


class SessionRequest(BaseModel):
    """API key for a new session."""

    key: Annotated[str, Field(min_length=1, max_length=200, description="secret of the API key")]


class SessionInfo(BaseModel):
    """Name and scope of the client's API key."""

    keys_required: Annotated[bool, Field(description="whether clients need an API key")]
    name: Annotated[str | None, Field(description="name of the client's API key; null without a key")]
    scope: Annotated[Scope | None, Field(description="scope of the client's API key; null without a key")]


@router.get("/session", tags=["session"], responses=problem_responses(429))
def get_session(request: Request, service: CurrentService) -> SessionInfo:
    """Return the name and scope of the client's API key."""
    key = client_key(request, service)
    return SessionInfo(keys_required=not service.open_to_all, name=key and key.name, scope=key and key.scope)


@router.post("/session", tags=["session"], responses=problem_responses(401, 413, 429))
def start_session(entry: SessionRequest, request: Request, response: Response, service: CurrentService) -> SessionInfo:
    """Start a session with an API key."""
    key = find_key(entry.key, request, service)
    if key is None:
        raise Problem(401, "unknown API key; the operator of the service creates keys with talud keys add NAME")
    if earlier := request.cookies.get(SESSION_COOKIE):
        service.sessions.end(earlier)
    response.set_cookie(
        SESSION_COOKIE,
        service.sessions.begin(key),
        max_age=SESSION_HOURS * 3600,
        httponly=True,
        samesite="strict",
        secure=request.app.state.address.uses_tls(request),
    )
    return SessionInfo(keys_required=not service.open_to_all, name=key.name, scope=key.scope)


@router.delete("/session", tags=["session"], status_code=204)
def end_session(request: Request, response: Response, service: CurrentService) -> None:
    """End the session."""
    if token := request.cookies.get(SESSION_COOKIE):
        service.sessions.end(token)
    response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
