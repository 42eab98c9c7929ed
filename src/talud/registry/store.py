"""Store of a project's runs and models: opening, relocation and MLflow's UI."""

from __future__ import annotations

import importlib.util
import os
import socket
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from mlflow import MlflowClient
from mlflow.entities import Experiment
from sqlalchemy import URL

from talud.errors import RegistryError
from talud.files import atomic_replace, exclusive_lock
from talud.registry.connection import EXPERIMENT, is_server, open_client, translated_errors
from talud.registry.files import FetchedModel
from talud.registry.leaderboard import EXPERIMENT_TAGS, VIEW, VIEW_TAG
from talud.registry.models import Models, check_uri
from talud.registry.runs import Runs

BACKUP = "mlflow.db.before-relocation"
# Columns of MLflow's tables that hold artifact paths; MLflow has no function to change them.
_PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@dataclass(frozen=True)
class Store:
    """Store of runs and models that a project uses.

    Attributes:
        client: client of the store.
        root: absolute root of the project; None outside a project.
    """

    client: MlflowClient
    root: Path | None

    @classmethod
    def open(cls, root: Path | None, *, create: bool = False) -> Self:
        """Open the store named by `MLFLOW_TRACKING_URI`, else the project's own.

        Args:
            root: absolute root of the project; may be None if `MLFLOW_TRACKING_URI` names a server.
            create: true to create the project's own store, and the experiment, if missing.

        Raises:
            RegistryError: The store is missing, does not answer, refuses the login, belongs to another version of
                MLflow, or was moved, so that its absolute artifact paths are wrong.
        """
        uri = store_uri(root)
        own = None if os.environ.get("MLFLOW_TRACKING_URI") else root
        if own is not None and not _has_content(own / "mlflow.db"):
            if not create:
                raise RegistryError(
                    f"{own / 'mlflow.db'}: there is no store yet; run talud train, or talud register to fill it from "
                    "models/"
                )
            with exclusive_lock(own, required=False):
                if not _has_content(own / "mlflow.db"):
                    _create(own)
        client, experiment = open_client(uri)
        if own is not None and experiment is not None:
            _check_in_place(own, experiment)
        if experiment is None:
            if create:
                _create_experiment(client, artifacts_uri(own) if own else None)
        elif create and experiment.tags.get(VIEW_TAG) != EXPERIMENT_TAGS[VIEW_TAG]:  # of an earlier version of talud
            with translated_errors():
                client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, EXPERIMENT_TAGS[VIEW_TAG])
        return cls(client, root)

    @property
    def models(self) -> Models:
        """Registered models."""
        return Models(self.client)

    @property
    def runs(self) -> Runs:
        """Runs of studies and trials."""
        return Runs(self.client, self.root)

    @property
    def server_url(self) -> str | None:
        """Address of the store's server, if it has one."""
        uri = str(self.client.tracking_uri)
        return uri.rstrip("/") if is_server(uri) else None

    def trials_url(self, address: str) -> str:
        """Return the address of the trials' list in MLflow's UI.

        Args:
            address: address of the UI; returned if the store has no experiment.
        """
        with translated_errors():
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return address
        view = f"viewStateShareKey={VIEW}&workflowType=machine_learning"
        return f"{address}/#/experiments/{experiment.experiment_id}/runs?{view}"


def fetch(uri: str, root: Path | None) -> FetchedModel:
    """Fetch a model of a project's store to this machine.

    Raises:
        RegistryError: The store is not available, or lacks the model.
    """
    check_uri(uri)
    return Store.open(root).models.fetch(uri)


def store_uri(root: Path | None) -> str:
    """Return the URI of the store in use.

    It is `MLFLOW_TRACKING_URI`, else the project's own database.

    Raises:
        RegistryError: There is neither.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if root is None:
        raise RegistryError("no model store: change into the folder of a project, or set MLFLOW_TRACKING_URI")
    return _sqlite(root / "mlflow.db")


def artifacts_uri(root: Path) -> str:
    """Return the URI of the project's own artifact folder."""
    return (root / "mlartifacts").as_uri()


def _sqlite(path: Path) -> str:
    """Return the quoted URL of a database file."""
    text = path.as_posix()
    if "%" in text or "?" in text:
        # The driver is part of the URL, or MLflow would create a folder with the quoted name.
        return URL.create("sqlite+pysqlite", database=text).render_as_string()
    return f"sqlite:///{text}"


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _create(root: Path) -> None:
    """Create an empty store atomically."""
    with translated_errors(), atomic_replace(root / "mlflow.db") as scratch:
        uri = _sqlite(scratch)
        client = MlflowClient(uri, uri)
        _create_experiment(client, artifacts_uri(root))
        client.delete_experiment("0")  # MLflow's empty "Default", which the UI would list first


def _create_experiment(client: MlflowClient, files: str | None) -> None:
    with translated_errors():
        client.create_experiment(EXPERIMENT, files, EXPERIMENT_TAGS)


def _check_in_place(root: Path, experiment: Experiment) -> None:
    """Check that a store was not copied or moved.

    Raises:
        RegistryError: Its artifact paths lead elsewhere.
    """
    if experiment.artifact_location.rstrip("/") != artifacts_uri(root):
        raise RegistryError(
            f"{root / 'mlflow.db'} has its artifacts in {experiment.artifact_location}; if the project was moved or"
            " copied with mlartifacts, run talud models relocate to correct the paths; do not delete mlflow.db, which"
            " would lose all runs, versions and aliases"
        )


def serve_ui(root: Path, host: str, port: int) -> NoReturn:
    """Replace this process by a server of MLflow's UI.

    Raises:
        RegistryError: Only mlflow-skinny is installed, or the port is in use.
    """
    if importlib.util.find_spec("flask") is None:
        raise RegistryError("the MLflow UI needs the full mlflow package; run: pip install 'talud[train]'")
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise RegistryError(f"{host}:{port} cannot be used: {reason}; choose another --port") from error
    # Switches off MLflow's tools for language models, and warnings about its dependencies.
    off = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
        "PYTHONWARNINGS": "ignore",
    }
    uri, files = store_uri(root), artifacts_uri(root)
    arguments = ["--backend-store-uri", uri, "--registry-store-uri", uri, "--default-artifact-root", files]
    network = ["--host", host, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    command = [sys.executable, "-m", "mlflow", "server", *arguments, *network]
    sys.stdout.flush()
    os.execve(sys.executable, command, os.environ | off)


@dataclass(frozen=True)
class Relocation:
    """Artifact paths of a store that a relocation changes.

    Attributes:
        old: location to which they lead now.
        new: location to which they should lead.
        rows: "table.column" → number of paths.
        written: true if the store was changed.
    """

    old: str
    new: str
    rows: Mapping[str, int]
    written: bool


def relocate(root: Path, *, write: bool) -> Relocation:
    """Correct the artifact paths of a moved store.

    All paths change in one transaction; a copy of the unchanged store is kept as `BACKUP`.

    Args:
        root: absolute root of the project.
        write: true to change the store; false only counts the paths.

    Raises:
        RegistryError: `MLFLOW_TRACKING_URI` names another store, the project has no store, the store is damaged, or its
            artifacts are missing.
    """
    path, new = root / "mlflow.db", artifacts_uri(root)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        raise RegistryError("MLFLOW_TRACKING_URI names another store; unset it to relocate the project's own")
    if not path.is_file() or not path.stat().st_size:
        raise RegistryError(f"{path}: there is no store to relocate")
    if not (root / "mlartifacts").is_dir():
        raise RegistryError(f"{root / 'mlartifacts'}: not found; copy this folder too, because it holds the models")
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
                    for table, column in _PATH_COLUMNS
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
    """Copy the store as it was before the open transaction."""
    with (
        atomic_replace(path.with_name(BACKUP)) as scratch,
        closing(sqlite3.connect(path)) as before,
        closing(sqlite3.connect(scratch)) as kept,
    ):
        before.backup(kept)


def _change(store: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    """Relocate the paths of a column; return their number."""
    columns = {row[1] for row in store.execute(f"PRAGMA table_info({table})")}
    if column not in columns:  # older versions of MLflow lack it
        return 0
    statement = (
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?"
    )
    inside = f"{old}/"
    return store.execute(statement, (new, len(old) + 1, old, len(inside), inside)).rowcount
