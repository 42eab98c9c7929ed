"""Whether the service lives, and whether it is ready to take jobs."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import text

from talud.serving.service import Running

router = APIRouter(prefix="/health", tags=["health"])


class Health(BaseModel):
    """That all is well."""

    status: str = "ok"


@router.get("/live")
def live() -> Health:
    """The process answers."""
    return Health()


@router.get("/ready")
def ready(service: Running) -> Health:
    """The database answers too."""
    with service.database.engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return Health()
