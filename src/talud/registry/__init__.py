"""Trials and registered models, kept in MLflow: the only room that imports mlflow.

A project keeps its own store, `mlflow.db` and the folder `mlartifacts`, in its root; where the environment sets
`MLFLOW_TRACKING_URI`, a team's server takes their place. Whoever imports this package imports mlflow (about a
second), so commands that may do without import it inside their functions.
"""

from __future__ import annotations

import os

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # usage statistics: off, also in the processes started from here
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what a user must know, talud says itself
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)  # read by mlflow when it is imported, below

from talud.registry.models import (  # noqa: E402
    Fetched,
    Version,
    add_file,
    champion,
    champions,
    describe,
    fetch,
    find,
    put_back,
    register,
    set_alias,
)
from talud.registry.store import EXPERIMENT, connect, location  # noqa: E402
from talud.registry.tracking import (  # noqa: E402
    Trial,
    commit,
    locate,
    note,
    restore,
    study,
    summarise,
    trial,
)

__all__ = [
    "EXPERIMENT",
    "Fetched",
    "Trial",
    "Version",
    "add_file",
    "champion",
    "champions",
    "commit",
    "connect",
    "describe",
    "fetch",
    "find",
    "locate",
    "location",
    "note",
    "put_back",
    "register",
    "restore",
    "set_alias",
    "study",
    "summarise",
    "trial",
]
