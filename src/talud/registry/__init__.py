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

from talud.registry.files import log_file  # noqa: E402
from talud.registry.leaderboard import summarise  # noqa: E402
from talud.registry.models import (  # noqa: E402
    Fetched,
    Version,
    add_file,
    broken_aliases,
    champion,
    champions,
    describe,
    fetch,
    find,
    look_up,
    model_uri,
    put_back,
    register,
    set_alias,
    versions,
)
from talud.registry.relocation import Relocation, relocate  # noqa: E402
from talud.registry.runs import Run, holding, run  # noqa: E402
from talud.registry.store import EXPERIMENT, connect, impatient, location  # noqa: E402
from talud.registry.succession import SET_ASIDE, promote, roll_back  # noqa: E402
from talud.registry.tracking import (  # noqa: E402
    Trial,
    commit,
    derivation,
    finished,
    locate,
    note,
    restore,
    study,
    trial,
)

__all__ = [
    "EXPERIMENT",
    "SET_ASIDE",
    "Fetched",
    "Relocation",
    "Run",
    "Trial",
    "Version",
    "add_file",
    "broken_aliases",
    "champion",
    "champions",
    "commit",
    "connect",
    "derivation",
    "describe",
    "fetch",
    "find",
    "finished",
    "holding",
    "impatient",
    "locate",
    "location",
    "log_file",
    "look_up",
    "model_uri",
    "note",
    "promote",
    "put_back",
    "register",
    "relocate",
    "restore",
    "roll_back",
    "run",
    "set_alias",
    "study",
    "summarise",
    "trial",
    "versions",
]
