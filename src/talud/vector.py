"""Vector files that are read as they are now, and beside which reading writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyogrio
from shapely.errors import ShapelyError

from talud.errors import SourceError
from talud.geopackage import snapshot
from talud.vector_path import plain_path


@contextmanager
def open_vector(path: str | Path, as_what: str = "") -> Iterator[Path]:
    """Yield the path at which pyogrio reads a vector file, edits included that are pending beside a GeoPackage.

    Args:
        path: the file.
        as_what: words that follow "cannot be read" in an error, such as " as polygons".

    Raises:
        SourceError: reading fails inside the block, or another program keeps writing to the file.
    """
    pyogrio.set_gdal_config_options({"GDAL_PAM_ENABLED": "NO"})  # GDAL would write NAME.aux.xml beside what it reads
    with snapshot(Path(path)) as current:
        whole = plain_path(current)
        try:
            yield whole
        except (RuntimeError, ValueError, ShapelyError) as error:  # the last: of a ring that is not closed
            reason = " ".join(str(error).split()).replace(str(whole), str(path)).replace(str(current), str(path))
            raise SourceError(f"{path}: cannot be read{as_what}: {reason}") from error
