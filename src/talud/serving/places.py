"""From a reference that a client gives to a local file that may be opened."""

from __future__ import annotations

import re
from pathlib import Path

from talud.errors import SourceError
from talud.serving.settings import Settings

_UPLOAD = re.compile("uploads/([0-9a-f-]{36})")


def local(href: str, settings: Settings) -> Path:
    """The file that a reference means: below the data folder, or an upload.

    Raises:
        SourceError: there is none, or it lies elsewhere.
    """
    upload = _UPLOAD.fullmatch(href)
    if upload:
        found = next((settings.results / "uploads" / upload[1]).glob("*.tif"), None)
        if found:
            return found.resolve()
    root = settings.data.resolve()
    path = (root / href).resolve() if "\0" not in href else root
    if upload or not path.is_relative_to(root) or not path.is_file():
        raise SourceError(f"{href}: no such raster; GET /rasters lists those that there are")
    return path
