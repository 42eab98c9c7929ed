"""The page for people, where it was built."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

BUILT = Path(__file__).parent.parent / "static"
_NOT_BUILT = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>talud</title></head>
<body>
<main>
<h1>The review page was not built</h1>
<p>All else of the service works without it. In a checkout of talud, with Node.js 20.19 or newer, <code>make page</code>
builds it; then start the service again.</p>
</main>
</body>
</html>
"""


class _Files(StaticFiles):
    """The page's files: those whose names change with what they hold may be kept, the others are asked for again."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        lasting = path.startswith("assets/")
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "no-cache"
        return response


def install(app: FastAPI, built: Path = BUILT) -> None:
    """Have an application show the page under /page/; where it was not built, say so there.

    Args:
        app: the application.
        built: folder of the built page.
    """
    if (built / "index.html").is_file():
        app.mount("/page", _Files(directory=built, html=True))
        return

    @app.get("/page/", include_in_schema=False)
    def not_built() -> HTMLResponse:
        return HTMLResponse(_NOT_BUILT)
