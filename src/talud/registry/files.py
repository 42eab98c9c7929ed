"""Files of runs: pages and pictures that the MLflow UI shows under a run's artifacts."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath

from talud.registry.store import connected, speaking


def log_file(run_id: str, content: bytes, name: str) -> None:
    """Keep a file with a run, in the place of one that has the name already.

    Args:
        run_id: of a run that may have ended.
        content: of the file.
        name: of the file, below the run's artifacts, as `examples/validation.png`.

    Raises:
        RegistryError: the store cannot be used, or has no room.
    """
    place = PurePosixPath(name)
    folder = None if place.parent == PurePosixPath() else str(place.parent)
    client = connected()
    with speaking(name), tempfile.TemporaryDirectory(prefix="talud-") as scratch:
        path = Path(scratch) / place.name
        path.write_bytes(content)
        client.log_artifact(run_id, str(path), folder)
