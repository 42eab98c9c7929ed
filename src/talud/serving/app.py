"""The service as an application: its parts put together, and what all answers have in common."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from talud.serving import problems
from talud.serving.address import Address
from talud.serving.guard import Guard
from talud.serving.logs import log
from talud.serving.routes import health, models, ogc, page, rasters, reviews, session
from talud.serving.service import Service
from talud.serving.settings import Settings

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; worker-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), camera=(), microphone=()",
}


def create_app(settings: Settings, *, open_to_all: bool = False) -> FastAPI:
    """The application; it opens its database, and begins with its jobs, when a server starts it.

    Args:
        settings: of the agency.
        open_to_all: whether no key is asked for.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with Service.started(settings, open_to_all=open_to_all) as service:
            app.state.service = service
            yield

    app = FastAPI(
        title="talud",
        version=version("talud"),
        summary="Landslide maps of registered models, by OGC API – Processes",
        lifespan=lifespan,
        docs_url=None,  # their pages load addresses outside
        redoc_url=None,
        openapi_url="/api",
    )
    problems.install(app)
    app.add_middleware(Guard, open_to_all=open_to_all)
    public = Address(settings.public_url.rstrip("/"), open_to_all=open_to_all)
    app.state.address = public

    @app.middleware("http")
    async def _secured(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        try:
            response: Response = await call_next(request)
        except Exception:
            log.exception("%s %s", request.method, request.url.path)
            response = problems.answer(500, "a fault of talud's; the service's log tells which")
        route = getattr(request.scope.get("route"), "path", "none")  # not the path: it would be counted one by one
        labels = route, request.method, str(response.status_code)
        request.app.state.service.metrics.requests.labels(*labels).observe(time.perf_counter() - began)
        if location := response.headers.get("Location"):
            response.headers["Location"] = public.of_link(request, location)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(network) for network in settings.proxies])
    for subject in (ogc, models, rasters, reviews, session, health):
        app.include_router(subject.router)
    page.install(app)
    return app
