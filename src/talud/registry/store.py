"""Where trials and models are kept, and how it is reached."""

from __future__ import annotations

import getpass
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mlflow's own use of deprecated interfaces
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.exceptions import MlflowException
    from mlflow.utils import mlflow_tags
    from mlflow.utils.rest_utils import http_request

from talud.errors import RegistryError
from talud.files import exclusive_lock, replacing
from talud.registry.refusals import SILENT, explain
from talud.terminal import unbroken

EXPERIMENT = "landslide-unet"
VIEW = "trials"  # the view of the experiment that `talud ui` opens
_SHOWN = (  # columns, the most telling first
    "metrics.`f1`",
    *(f"params.`{choice}`" for choice in ("filters", "learning_rate", "batch_size")),
    *(f"metrics.`{score}`" for score in ("best_epoch", "seconds", "precision", "recall", "iou")),
)
_VIEW_STATE = {
    "searchFilter": "tags.`mlflow.parentRunId` != ''",
    "orderByKey": "metrics.`f1`",
    "orderByAsc": False,
    "selectedColumns": [*_SHOWN, "attributes.`Models`"],
    "columnOrder": ["0", "attributes.`Run Name`", *_SHOWN, "attributes.`Models`"],
    "columnWidths": {"attributes.`Run Name`": 300} | dict.fromkeys(_SHOWN, 105),
}
_EXPERIMENT_TAGS = {  # by which the UI chooses what it shows first
    "mlflow.experimentKind": "custom_model_development",
    f"mlflow.sharedViewState.{VIEW}": json.dumps(_VIEW_STATE),
    mlflow_tags.MLFLOW_EXPERIMENT_PRIMARY_METRIC_NAME: "f1",
    mlflow_tags.MLFLOW_EXPERIMENT_PRIMARY_METRIC_GREATER_IS_BETTER: "True",
    mlflow_tags.MLFLOW_RUN_NOTE: "U-Nets that map landslides: a run for each study, and below it one for each trial.",
}


@contextmanager
def speaking(about: str = "MLflow") -> Iterator[None]:
    """What goes wrong inside mlflow becomes a RegistryError of one line, its warnings stay inside, and Ctrl-C waits.

    Args:
        about: what the line begins with.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with warnings.catch_warnings(), unbroken():
            warnings.simplefilter("ignore")
            yield
    except (MlflowException, SQLAlchemyError) as error:
        raise RegistryError(f"{about}: {_without_password(explain(error))}") from error
    except OSError as error:  # a full disk, or the server that keeps the files
        where, said = f"{error.filename}: " if error.filename else "", " ".join(str(error.strerror or error).split())
        raise RegistryError(f"{about}: {where}{_without_password(said)}; nothing is lost, start again") from error


def location(root: Path | None) -> str:
    """The URI of the store: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the project's root.

    Raises:
        RegistryError: neither is there.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if root is None:
        raise RegistryError("no model store: run talud inside a project, or set MLFLOW_TRACKING_URI")
    return _sqlite(root / "mlflow.db")


def _sqlite(path: Path) -> str:
    """Return the URL of a database file, with special characters quoted."""
    place = path.as_posix()
    if "%" in place or "?" in place:
        # With its driver named, mlflow does not make the folder that the quoted path would be unquoted.
        return URL.create("sqlite+pysqlite", database=place).render_as_string()
    return f"sqlite:///{place}"


def connect(root: Path | None, *, create: bool = False) -> MlflowClient:
    """Reach the store that `location` names; what follows in this process uses it.

    Args:
        root: the project's root, absolute.
        create: make the project's own store, and the experiment, where there is none. Without it, nothing is created.

    Raises:
        RegistryError: there is no store, it does not answer, refuses the login, is of another version of MLflow, or
            was moved: its artifact paths are absolute and lead elsewhere.
    """
    uri = location(root)
    own = None if os.environ.get("MLFLOW_TRACKING_URI") else root
    if own is not None and not _holds_anything(own / "mlflow.db"):
        if not create:
            raise RegistryError(
                f"{own / 'mlflow.db'}: there is no store yet; run talud train first, or talud register to fill it "
                "from models/"
            )
        with exclusive_lock(own, required=False):
            if not _holds_anything(own / "mlflow.db"):
                _create(own)
    client, experiment = _reach(uri)
    _check_version(client, uri)
    if own is not None and experiment is not None:
        _check_in_place(own, experiment)
    if experiment is None and create:
        _create_experiment(client, artifacts(own) if own else None)
    _use(uri)
    return client


def connected() -> MlflowClient:
    """A client of the store that `connect` reached.

    Raises:
        RegistryError: `connect` was not called.
    """
    if not mlflow.is_tracking_uri_set():  # type: ignore[no-untyped-call]
        raise RegistryError("no model store is connected; call talud.registry.connect first")
    return MlflowClient()


def experiment_id() -> str:
    """The id of the experiment `landslide-unet`.

    Raises:
        RegistryError: the store has none.
    """
    with speaking():
        experiment = connected().get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise RegistryError(f"the model store has no experiment '{EXPERIMENT}'; run talud train first")
    return str(experiment.experiment_id)


def user() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def artifacts(root: Path) -> str:
    """The URI of the folder beside the project's own store that holds the files of runs and models."""
    return (root / "mlartifacts").as_uri()


def _holds_anything(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _create(root: Path) -> None:
    """Make an empty store; it appears under its name only when its tables and experiment are there."""
    with speaking(), replacing(root / "mlflow.db") as scratch:
        client = MlflowClient(_sqlite(scratch))
        _create_experiment(client, artifacts(root))
        client.delete_experiment("0")  # mlflow's "Default", always empty: the UI would list it first


def _create_experiment(client: MlflowClient, files: str | None) -> None:
    with speaking():
        client.create_experiment(EXPERIMENT, files, _EXPERIMENT_TAGS)


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def _use(uri: str) -> None:
    """Make a store the one that this process uses, without the environment variable that mlflow also sets.

    There, the variable would hide the next project's own store.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)


def _reach(uri: str) -> tuple[MlflowClient, Experiment | None]:
    """A client that has been answered once, and the experiment if there is one."""
    try:
        with speaking(), impatient():
            client = MlflowClient(uri)
            return client, client.get_experiment_by_name(EXPERIMENT)
    except RegistryError as error:
        shown = _without_password(uri)
        if "out-of-date database schema" in str(error):
            advice = f"another version of MLflow wrote it; copy it aside, then run: mlflow db upgrade {shown}"
            raise RegistryError(f"{shown}: {advice}") from error
        silent = SILENT in str(error)
        reason = "it does not answer; is the server up, and MLFLOW_TRACKING_URI right?" if silent else error
        raise RegistryError(f"the model store {shown} cannot be used: {reason}") from error


def _check_version(client: MlflowClient, uri: str) -> None:
    """That a server is of this MLflow's major version; another one's runs and models are kept in other ways.

    Raises:
        RegistryError: it is not.
    """
    if not uri.startswith(("http://", "https://")):
        return
    with speaking(), impatient():
        credentials = client._tracking_client.store.get_host_creds()
        answer = http_request(credentials, "/version", "GET").text.strip()  # type: ignore[no-untyped-call]
    theirs = re.match(r"(\d+)\.\d+", answer)  # a proxy may have no such page
    if theirs and theirs[1] != mlflow.__version__.partition(".")[0]:
        raise RegistryError(
            f"the model store {_without_password(uri)} cannot be used: its server runs MLflow {answer}, this process "
            f"{mlflow.__version__}; let them have the same major version"
        )


@contextmanager
def impatient() -> Iterator[None]:
    """For a call to a server that would otherwise be tried for minutes: a few seconds.

    Limits that the user has set hold.
    """
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    ours = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _check_in_place(root: Path, experiment: Experiment) -> None:
    """Refuse a store that was copied or moved with its project: its artifacts are not where it says."""
    if experiment.artifact_location.rstrip("/") != artifacts(root):
        raise RegistryError(
            f"{root / 'mlflow.db'} was made elsewhere and keeps its models in {experiment.artifact_location}; if the"
            " project was copied or moved with mlartifacts, run talud models relocate, which corrects its paths;"
            " to remove mlflow.db would lose all runs, versions and aliases, of which talud register brings back only"
            " the models in models/"
        )
