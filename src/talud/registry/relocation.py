"""Relocation of a project's own store after the project was copied or moved.

The store holds absolute artifact paths.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from talud.errors import RegistryError
from talud.files import replacing
from talud.registry.store import EXPERIMENT, artifacts

BACKUP = "mlflow.db.before-relocation"
_COLUMNS = (  # of MLflow's tables, that hold artifact paths; it offers no call that changes them
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@dataclass(frozen=True)
class Relocation:
    """The artifact paths of a store that a relocation changes.

    Attributes:
        old: where they lead.
        new: where they shall lead.
        rows: "table.column" → how many paths.
        written: whether the store was changed.
    """

    old: str
    new: str
    rows: Mapping[str, int]
    written: bool


def relocate(root: Path, *, write: bool) -> Relocation:
    """Change the artifact paths of a project's store to its present location.

    All change in one transaction; the store as it was is kept beside it as `BACKUP`.

    Args:
        root: the project's root, absolute.
        write: change the store; without it, count what would change.

    Raises:
        RegistryError: the environment names a team's store, there is no store of the project's own, or it is damaged,
            or its files are not here.
    """
    path, new = root / "mlflow.db", artifacts(root)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        raise RegistryError("MLFLOW_TRACKING_URI names a store that is not this project's own; unset it to relocate")
    if not path.is_file() or not path.stat().st_size:
        raise RegistryError(f"{path}: there is no store to relocate")
    if not (root / "mlartifacts").is_dir():
        raise RegistryError(f"{root / 'mlartifacts'}: not found; copy this folder too, it holds the models")
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as store:
            store.execute("BEGIN IMMEDIATE")
            found = store.execute("SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
            if found is None:
                raise RegistryError(f"{path}: has no experiment '{EXPERIMENT}', so there is nothing to relocate")
            old = str(found[0]).rstrip("/")
            rows = {}
            if old != new:
                rows = {
                    f"{table}.{column}": count
                    for table, column in _COLUMNS
                    if (count := _change(store, table, column, old, new))
                }
            if not (write and rows):
                store.execute("ROLLBACK")
                return Relocation(old, new, rows, written=False)
            _back_up(path)
            store.execute("COMMIT")
    except sqlite3.Error as error:
        raise RegistryError(f"{path}: cannot be relocated: {error}") from error
    return Relocation(old, new, rows, written=True)


def _back_up(path: Path) -> None:
    """Copy the store before the open transaction changes it."""
    with (
        replacing(path.with_name(BACKUP)) as scratch,
        closing(sqlite3.connect(path)) as before,
        closing(sqlite3.connect(scratch)) as kept,
    ):
        before.backup(kept)


def _change(store: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    """Change the paths of a column within the old location; return their number."""
    columns = {row[1] for row in store.execute(f"PRAGMA table_info({table})")}
    if column not in columns:  # of an older MLflow
        return 0
    statement = (
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?"
    )
    inside = f"{old}/"
    return store.execute(statement, (new, len(old) + 1, old, len(inside), inside)).rowcount
