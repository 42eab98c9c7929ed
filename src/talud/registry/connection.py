"""MLflow as talud uses it: the address of a store, its clients, and their errors in plain words."""

from __future__ import annotations

import getpass
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from importlib.metadata import version

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mlflow's own use of deprecated interfaces
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Metric
    from mlflow.exceptions import MlflowException
    from mlflow.tracking._tracking_service import utils as tracking_utils
    from mlflow.utils import mlflow_tags
    from mlflow.utils.rest_utils import http_request

from talud.errors import RegistryError
from talud.process import defer_sigint

EXPERIMENT = "landslide-unet"
SCORES = ("f1", "precision", "recall", "iou")  # of a trial, on the validation blocks
NO_ANSWER = "the server does not answer; what was trained is kept, so start again when it is back"
_LOGIN = "the server refuses the login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to one that it knows"
_FORBIDDEN = "the server does not let the user that MLFLOW_TRACKING_USERNAME names do this; ask its administrator"
_OF_MLFLOW = {"UNAUTHENTICATED": _LOGIN, "PERMISSION_DENIED": _FORBIDDEN}
_IN_PLAIN_TEXT = {(401, "You are not authenticated"): _LOGIN, (403, "Permission denied"): _FORBIDDEN}
_PROXY = "a proxy or gateway before the server"
_GATEWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
_DEFAULT_URI_LOCK = threading.Lock()


def is_server(uri: str) -> bool:
    """Return whether the store of a URI is an MLflow server, and no database."""
    return uri.startswith(("http://", "https://"))


def open_client(uri: str) -> tuple[MlflowClient, Experiment | None]:
    """Return a client that has been answered once, and the experiment if there is one.

    Raises:
        RegistryError: the store does not answer, refuses the login, or is of another version of MLflow.
    """
    try:
        with translated_errors(), short_timeouts():
            client = MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)
            experiment = client.get_experiment_by_name(EXPERIMENT)
    except RegistryError as error:
        shown = _without_password(uri)
        if "out-of-date database schema" in str(error):
            advice = f"another version of MLflow wrote it; copy it aside, then run: mlflow db upgrade {shown}"
            raise RegistryError(f"{shown}: {advice}") from error
        silent = NO_ANSWER in str(error)
        reason = "it does not answer; is the server up, and MLFLOW_TRACKING_URI right?" if silent else error
        raise RegistryError(f"the model store {shown} cannot be used: {reason}") from error
    if is_server(uri):
        _check_version(client, uri)
    return client, experiment


def _check_version(client: MlflowClient, uri: str) -> None:
    """Check that a server has this MLflow's major version; others keep runs and models differently.

    Raises:
        RegistryError: it has another.
    """
    with translated_errors(), short_timeouts():
        credentials = client._tracking_client.store.get_host_creds()
        answer = http_request(credentials, "/version", "GET").text.strip()  # type: ignore[no-untyped-call]
    theirs = re.match(r"(\d+)\.\d+", answer)  # a proxy may have no such page
    if theirs and theirs[1] != mlflow.__version__.partition(".")[0]:
        raise RegistryError(
            f"the model store {_without_password(uri)} cannot be used: its server runs MLflow {answer}, this process "
            f"{mlflow.__version__}; let them have the same major version"
        )


def experiment_id(client: MlflowClient) -> str:
    """Return the id of the experiment `landslide-unet`.

    Raises:
        RegistryError: the store does not have it.
    """
    with translated_errors():
        experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise RegistryError(f"the model store has no experiment '{EXPERIMENT}'; run talud train first")
    return str(experiment.experiment_id)


@contextmanager
def default_store(client: MlflowClient) -> Iterator[None]:
    """Make a client's store MLflow's default within the block.

    For a new version of a model, and for a model that is named by its run (runs:/…), MLflow asks its default store,
    whichever store the client is of. The public `set_tracking_uri` would also set the environment variable that talud
    reads.
    """
    with _DEFAULT_URI_LOCK:
        before = tracking_utils._tracking_uri
        tracking_utils._tracking_uri = client.tracking_uri
        try:
            yield
        finally:
            tracking_utils._tracking_uri = before


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Give requests to a server a few seconds, where MLflow would retry for minutes.

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


def current_user() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def origin_tags(command: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags of a run for the UI's columns Source, Version and User."""
    origin = {
        mlflow_tags.MLFLOW_SOURCE_NAME: f"talud {command} {tags.get('band_set', '')}".strip(),
        mlflow_tags.MLFLOW_SOURCE_TYPE: "LOCAL",
        mlflow_tags.MLFLOW_USER: current_user(),
        "talud": version("talud"),
    }
    commit = tags.get("commit", "unknown").removesuffix("+changes")
    if commit != "unknown":
        origin[mlflow_tags.MLFLOW_GIT_COMMIT] = commit
    return origin


def metrics(values: Mapping[str, float]) -> list[Metric]:
    """Convert numbers to metrics of the present time, at step 0."""
    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, 0) for name, value in values.items()]


@contextmanager
def translated_errors(subject: str = "MLflow") -> Iterator[None]:
    """Turn errors of MLflow into a RegistryError of one line.

    Warnings of MLflow are suppressed within the block, and Ctrl-C takes effect at its end.

    Args:
        subject: the beginning of the line.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with warnings.catch_warnings(), defer_sigint():
            warnings.simplefilter("ignore")
            yield
    except (MlflowException, SQLAlchemyError) as error:
        raise RegistryError(f"{subject}: {_without_password(explain_error(error))}") from error
    except OSError as error:  # a full disk, or the server that keeps the files
        file, text = f"{error.filename}: " if error.filename else "", " ".join(str(error.strerror or error).split())
        raise RegistryError(f"{subject}: {file}{_without_password(text)}; nothing is lost, start again") from error


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def explain_error(error: Exception) -> str:
    """Explain an error of mlflow in one line: who refused, and what to do."""
    said = " ".join(str(error).split())
    if answer := re.search(r"failed with error code (\d{3}) .*?Response body: '(.*)'", said):
        return _answered(int(answer[1]), answer[2])
    if "not in a valid JSON format" in said:
        return (
            "what answers there is no MLflow server, but a page, such as a proxy's login; is MLFLOW_TRACKING_URI right?"
        )
    if "failed with exception" in said:  # what mlflow says of a connection; the rest is urllib3's
        return _not_connected(said)
    if said.startswith("INTERNAL_ERROR: Response: "):  # JSON without the error code that MLflow always gives
        return f"{_PROXY}, not MLflow, refuses: {said.removeprefix('INTERNAL_ERROR: Response: ')}"
    return _OF_MLFLOW.get(getattr(error, "error_code", ""), said)


def _answered(status: int, body: str) -> str:
    """Explain an answer that is not JSON.

    The login of MLflow answers with plain text, a proxy with a page of its own.
    """
    for (code, beginning), meaning in _IN_PLAIN_TEXT.items():
        if status == code and body.startswith(beginning):
            return meaning
    return f"{_PROXY}, not MLflow, answers with status {_named(status)}; {_advice(status)}"


def _not_connected(said: str) -> str:
    if repeated := re.search(r"too many (\d{3}) error responses", said):
        status = int(repeated[1])
        return f"{_PROXY}, or the server itself, answers with status {_named(status)}; {_advice(status)}"
    if tunnel := re.search(r"Tunnel connection failed: (\d{3})", said):
        status = int(tunnel[1])
        return f"the proxy that HTTPS_PROXY names answers with status {_named(status)}; {_advice(status)}"
    if "ProxyError" in said:
        return (
            "the proxy that HTTP_PROXY or HTTPS_PROXY names does not answer; correct it, or set NO_PROXY for this host"
        )
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return (
            "the server's certificate is not trusted here; name the file of your authority's certificates in "
            "REQUESTS_CA_BUNDLE"
        )
    if "SSLError" in said:
        return "the server does not speak TLS as expected; does MLFLOW_TRACKING_URI begin with http or https?"
    if "NameResolutionError" in said or "Failed to resolve" in said:
        return "no machine of that name is known here; is MLFLOW_TRACKING_URI right?"
    return NO_ANSWER


def _advice(status: int) -> str:
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return "put the proxy's login into HTTP_PROXY and HTTPS_PROXY, or set NO_PROXY for this host"
    if status in _GATEWAY:
        return "it does not reach the server; what was trained is kept, so start again when it is back"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "wait a while; what was trained is kept, so start again then"
    return "ask its administrator for access, set NO_PROXY for this host, or correct MLFLOW_TRACKING_URI"


def _named(status: int) -> str:
    try:
        return f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return str(status)
