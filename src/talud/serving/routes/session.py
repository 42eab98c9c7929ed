"""The page's session: a token in a cookie.

Scripts cannot read the cookie, and other sites cannot use it.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from talud.serving.keys import SESSION_HOURS
from talud.serving.problems import Problem, described
from talud.serving.service import COOKIE, Running, holder, key_of
from talud.serving.tables import Scope

router = APIRouter(prefix="/session", tags=["session"])


class Entry(BaseModel):
    """The key with which a session begins."""

    key: str = Field(min_length=1, max_length=200)


class Session(BaseModel):
    """Who asks, and what they may do."""

    keys_required: bool
    name: str | None
    scope: Scope | None


@router.get("", responses=described(429))
def show(request: Request, service: Running) -> Session:
    """Who asks, by the key that the request brings."""
    key = holder(request, service)
    return Session(keys_required=not service.open_to_all, name=key and key.name, scope=key and key.scope)


@router.post("", responses=described(401, 413, 429))
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


@router.delete("", status_code=204)
def end(request: Request, response: Response, service: Running) -> None:
    """End the session."""
    if token := request.cookies.get(COOKIE):
        service.sessions.end(token)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
