"""Store of runs and registered models in MLflow.

This is the only package that imports mlflow. A project has its own store in its root, `mlflow.db` and the folder
`mlartifacts`; if the environment sets `MLFLOW_TRACKING_URI`, that server is used instead. Importing this package
imports mlflow (about a second), so commands that may not need it import it inside their functions.
"""

from __future__ import annotations

import os

for _name, _value in {
    # Usage statistics are off, also in the processes started from here.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # talud itself prints the messages that a user must see.
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)  # read by mlflow when it is imported, below

from talud.registry.connection import EXPERIMENT, short_timeouts  # noqa: E402
from talud.registry.models import SET_ASIDE_TAG, ModelVersion, model_uri  # noqa: E402
from talud.registry.runs import RunInfo  # noqa: E402
from talud.registry.store import Store, fetch, relocate, serve_ui  # noqa: E402
from talud.registry.trial_run import TrialRun  # noqa: E402

__all__ = [
    "EXPERIMENT",
    "SET_ASIDE_TAG",
    "ModelVersion",
    "RunInfo",
    "Store",
    "TrialRun",
    "fetch",
    "model_uri",
    "relocate",
    "serve_ui",
    "short_timeouts",
]
