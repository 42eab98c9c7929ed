"""The MLflow UI over a project's own store."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from talud.errors import RegistryError
from talud.registry.store import EXPERIMENT, VIEW, artifacts, connect, connected, location, speaking


def server(root: Path) -> str | None:
    """The address of the server that `MLFLOW_TRACKING_URI` names, whose UI is there already.

    Raises:
        RegistryError: it does not answer; or, where none is named, the project has no store.
    """
    connect(root)
    uri = location(root)
    return uri.rstrip("/") if uri.startswith(("http://", "https://")) else None


def page(address: str) -> str:
    """The page of a server that lists the trials, best first; its first page where there are none yet."""
    with speaking():
        experiment = connected().get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return address
    view = f"viewStateShareKey={VIEW}&workflowType=machine_learning"
    return f"{address}/#/experiments/{experiment.experiment_id}/runs?{view}"


def serve(root: Path, host: str, port: int) -> NoReturn:
    """Become the MLflow server: this process is replaced, and Ctrl-C ends it.

    Raises:
        RegistryError: only mlflow-skinny is installed, or the port is taken.
    """
    if importlib.util.find_spec("flask") is None:
        raise RegistryError("the MLflow UI needs the whole of mlflow; run: pip install 'talud[train]'")
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise RegistryError(f"{host}:{port} cannot be used: {reason}; name another --port") from error
    off = {  # what serves and evaluates language models; and warnings about mlflow's own dependencies
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
        "PYTHONWARNINGS": "ignore",
    }
    uri = location(root)
    arguments = ["--backend-store-uri", uri, "--registry-store-uri", uri, "--default-artifact-root", artifacts(root)]
    network = ["--host", host, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    command = [sys.executable, "-m", "mlflow", "server", *arguments, *network]
    sys.stdout.flush()
    os.execve(sys.executable, command, os.environ | off)
