"""Web application of the service and its server process."""

from __future__ import annotations

import socket
import threading
import time
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from talud.errors import OutputError
from talud.serving import problems
from talud.serving.database import Database
from talud.serving.monitoring import configure_logging, log
from talud.serving.routes import ogc, rasters, reviews, service
from talud.serving.security import HeaderTimeoutProtocol, PublicAddress, RequestChecks
from talud.serving.service import Service
from talud.serving.settings import Settings
from talud.serving.storage import lock_results

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; worker-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), camera=(), microphone=()",
}
PAGE_FOLDER = Path(__file__).parent / "static"
_MISSING_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>talud</title></head>
<body>
<main>
<h1>The review page was not built</h1>
<p>The rest of the service works without it. To build it, run <code>make page</code> in a checkout of talud with
Node.js 20.19 or newer; then restart the service.</p>
</main>
</body>
</html>
"""


def create_app(settings: Settings, *, open_to_all: bool = False) -> FastAPI:
    """Create the web application.

    Args:
        settings: settings of the service.
        open_to_all: whether clients need no API key.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with Service.start(settings, open_to_all=open_to_all) as running:
            app.state.service = running
            yield

    app = FastAPI(
        title="talud",
        version=version("talud"),
        summary="Landslide maps by registered models through OGC API – Processes",
        lifespan=lifespan,
        docs_url=None,  # the documentation pages would load scripts from other hosts
        redoc_url=None,
        openapi_url="/api",
    )
    problems.install_handlers(app)
    app.add_middleware(RequestChecks, open_to_all=open_to_all)
    public = PublicAddress(settings.public_url.rstrip("/"), open_to_all=open_to_all)
    app.state.address = public

    @app.middleware("http")
    async def _secured(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        try:
            response: Response = await call_next(request)
        except Exception:
            log.exception("%s %s", request.method, request.url.path)
            response = problems.problem_response(500, "internal error of the service; its log contains the details")
        route = getattr(request.scope.get("route"), "path", "none")  # not the path: it would be counted one by one
        labels = route, request.method, str(response.status_code)
        request.app.state.service.metrics.request_seconds.labels(*labels).observe(time.perf_counter() - began)
        if location := response.headers.get("Location"):
            response.headers["Location"] = public.rewrite_link(request, location)
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(network) for network in settings.proxies])
    for subject in (ogc, rasters, reviews, service):
        app.include_router(subject.router)
    install_page(app)
    return app


class _PageFiles(StaticFiles):
    """Static files of the page, with caching headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        lasting = path.startswith("assets/")
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "no-cache"
        return response


def install_page(app: FastAPI, folder: Path = PAGE_FOLDER) -> None:
    """Mount the review page at /page/, or a notice if it was not built.

    Args:
        app: the application.
        folder: folder of the built page
    """
    if (folder / "index.html").is_file():
        app.mount("/page", _PageFiles(directory=folder, html=True))
        return

    @app.get("/page/", include_in_schema=False)
    def not_built() -> HTMLResponse:
        return HTMLResponse(_MISSING_PAGE)


def check_start(settings: Settings, host: str, port: int) -> None:
    """Check that the service can be started.

    Raises:
        ParamsError: the URL of the database is invalid.
        BusyError: another service uses the results folder.
        OutputError: the port is in use, or the database cannot be opened.
    """
    with lock_results(settings.results), Database.open(settings.database_url):
        pass
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise OutputError(f"{host}:{port} cannot be used: {reason}; choose another --port") from error


def open_browser(host: str, port: int, page: str) -> None:
    """Open a page in the browser once the service answers."""

    def wait() -> None:
        while True:
            try:
                socket.create_connection((host, port), timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                webbrowser.open(page)
                return

    threading.Thread(target=wait, name="browser", daemon=True).start()


def serve(settings: Settings, host: str, port: int, *, open_to_all: bool) -> None:
    """Run the service until Ctrl-C or SIGTERM.

    Args:
        settings: settings of the service.
        host: host to listen at.
        port: port to listen at.
        open_to_all: whether clients need no API key.
    """
    configure_logging(settings.log)
    app = create_app(settings, open_to_all=open_to_all)
    keys = "no keys required" if open_to_all else "keys required"
    log.info("starting at %s port %s; %s; results in %s", host, port, keys, settings.results)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        http=HeaderTimeoutProtocol,
        log_config=None,
        timeout_graceful_shutdown=5,
    )
    log.info("stopped")
