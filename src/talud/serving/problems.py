"""Errors as `application/problem+json` responses (RFC 9457)."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from talud.errors import (
    ClusterError,
    ForbiddenError,
    MismatchError,
    ModelError,
    OutputError,
    ParamsError,
    RegistryError,
    SourceError,
    TaludError,
)
from talud.serving.database import RETRY_AFTER_SECONDS, is_outage
from talud.text import first_line

OGC_EXCEPTIONS = "http://www.opengis.net/def/exceptions/ogcapi-processes-1/1.0"
NO_SUCH_JOB, NO_SUCH_PROCESS, RESULT_NOT_READY = (
    f"{OGC_EXCEPTIONS}/no-such-job",
    f"{OGC_EXCEPTIONS}/no-such-process",
    f"{OGC_EXCEPTIONS}/result-not-ready",
)
_STATUS_CODES: dict[type[TaludError], int] = {  # status code by class of the error
    ParamsError: 422,
    ForbiddenError: 403,
    SourceError: 422,
    MismatchError: 422,
    ModelError: 422,
    RegistryError: 422,
    ClusterError: 503,
    OutputError: 507,
}
log = logging.getLogger("talud.service")


class Problem(Exception):  # noqa: N818 - the standard's name
    """Error that the client receives as a problem response.

    Attributes:
        status: HTTP status code.
        detail: one-line message for users.
        kind: URI of the problem type, if a standard defines one.
        headers: headers of the response.
    """

    def __init__(
        self, status: int, detail: str, kind: str = "about:blank", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.kind, self.headers = status, detail, kind, headers


class ProblemBody(BaseModel):
    """Problem details (RFC 9457)."""

    type: Annotated[str, Field(description="URI of the problem type")] = "about:blank"
    title: Annotated[str, Field(description="phrase of the status code")]
    status: Annotated[int, Field(description="HTTP status code")]
    detail: Annotated[str, Field(description="what is wrong, in one line")]


def problem_response(
    status: int, detail: str, kind: str = "about:blank", headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return a problem response."""
    body = ProblemBody(type=kind, title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(body.model_dump(), status, headers, media_type="application/problem+json")


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI descriptions of a route's problem responses."""
    return {
        status: {"description": HTTPStatus(status).phrase, "model": ProblemBody, "content": {_MEDIA_TYPE: {}}}
        for status in statuses
    }


_MEDIA_TYPE = "application/problem+json"
MAX_REPORTED_ERRORS = 10  # of an invalid request


def install_handlers(app: FastAPI) -> None:
    """Install the error handlers of an application."""

    @app.exception_handler(Problem)
    async def _problem(_: Request, problem: Problem) -> JSONResponse:
        return problem_response(problem.status, problem.detail, problem.kind, problem.headers)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return problem_response(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        messages = [f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}" for one in error.errors()]
        more = f"; and {len(messages) - MAX_REPORTED_ERRORS} more" if len(messages) > MAX_REPORTED_ERRORS else ""
        return problem_response(422, "; ".join(messages[:MAX_REPORTED_ERRORS]) + more)

    @app.exception_handler(SQLAlchemyError)
    async def _outage(_: Request, error: SQLAlchemyError) -> JSONResponse:
        if not is_outage(error):
            raise error
        log.warning("the database did not answer a request: %s", first_line(error))
        retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return problem_response(503, "the service's database does not answer; try again later", headers=retry)

    @app.exception_handler(TaludError)
    async def _talud(request: Request, error: TaludError) -> JSONResponse:
        detail = request.app.state.service.settings.remove_folders(str(error))
        return problem_response(
            next(status for kind, status in _STATUS_CODES.items() if isinstance(error, kind)), detail
        )
