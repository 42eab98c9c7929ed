"""Whether the service lives, and whether it is ready to take jobs."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from talud.serving.problems import Problem, described
from talud.serving.service import Reader, Running

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """That all is well."""

    status: str = "ok"


@router.get("/health/live")
def live() -> Health:
    """The process answers."""
    return Health()


@router.get("/health/ready", responses=described(503))
def ready(service: Running) -> Health:
    """The database answers, and workers are there."""
    try:
        with service.database.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        raise Problem(503, "the database does not answer") from error
    if not service.executor.slots:
        raise Problem(503, "no worker is there yet")
    return Health()


@router.get("/metrics", response_class=PlainTextResponse, responses=described(401))
def metrics(service: Running, _: Reader) -> Response:
    """Figures for Prometheus, which can bring a key with the scope read as its bearer token."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
