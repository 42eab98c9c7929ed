"""Connection to MLflow: clients, timeouts, tags and errors."""

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
    warnings.simplefilter("ignore")  # mlflow itself uses deprecated interfaces
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
# Scores of a trial on the validation blocks.
SCORES = ("f1", "precision", "recall", "iou")
NO_ANSWER = "the server does not answer; finished training is kept, so run the command again when it is available"
_LOGIN = "the server rejects the login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a valid one"
_FORBIDDEN = "the server does not allow this for the user in MLFLOW_TRACKING_USERNAME; ask its administrator"
_BY_ERROR_CODE = {"UNAUTHENTICATED": _LOGIN, "PERMISSION_DENIED": _FORBIDDEN}
_BY_PLAIN_TEXT = {(401, "You are not authenticated"): _LOGIN, (403, "Permission denied"): _FORBIDDEN}
_PROXY = "a proxy or gateway in front of the server"
_GATEWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
_DEFAULT_URI_LOCK = threading.Lock()


def is_server(uri: str) -> bool:
    """Return whether a URI names an MLflow server."""
    return uri.startswith(("http://", "https://"))


def open_client(uri: str) -> tuple[MlflowClient, Experiment | None]:
    """Connect to a store; return client and experiment.

    The experiment is None if the store does not have it.

    Raises:
        RegistryError: The store does not answer, refuses the login, or belongs to another version of MLflow.
    """
    try:
        with translated_errors(), short_timeouts():
            client = MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)
            experiment = client.get_experiment_by_name(EXPERIMENT)
    except RegistryError as error:
        shown = _without_password(uri)
        if "out-of-date database schema" in str(error):
            advice = f"it was written by another version of MLflow; back it up, then run: mlflow db upgrade {shown}"
            raise RegistryError(f"{shown}: {advice}") from error
        silent = NO_ANSWER in str(error)
        reason = "it does not answer; check the server and MLFLOW_TRACKING_URI" if silent else error
        raise RegistryError(f"the model store {shown} cannot be used: {reason}") from error
    if is_server(uri):
        _check_version(client, uri)
    return client, experiment


def _check_version(client: MlflowClient, uri: str) -> None:
    """Check a server's major version of MLflow.

    Major versions store runs and models differently.

    Raises:
        RegistryError: The server runs another major version.
    """
    with translated_errors(), short_timeouts():
        credentials = client._tracking_client.store.get_host_creds()
        answer = http_request(credentials, "/version", "GET").text.strip()  # type: ignore[no-untyped-call]
    server_version = re.match(r"(\d+)\.\d+", answer)  # a proxy may not forward this page
    if server_version and server_version[1] != mlflow.__version__.partition(".")[0]:
        raise RegistryError(
            f"the model store {_without_password(uri)} cannot be used: its server runs MLflow {answer}, this process "
            f"{mlflow.__version__}; install the same major version"
        )


def experiment_id(client: MlflowClient) -> str:
    """Return the id of the experiment `landslide-unet`.

    Raises:
        RegistryError: The store does not have the experiment.
    """
    with translated_errors():
        experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise RegistryError(f"the model store has no experiment '{EXPERIMENT}'; run talud train first")
    return str(experiment.experiment_id)


@contextmanager
def default_store(client: MlflowClient) -> Iterator[None]:
    """Make a client's store MLflow's default in the block.

    MLflow uses its default store, not the client's, to create a model version and to resolve a URI runs:/…. The public
    `set_tracking_uri` would also set the environment variable that talud reads.
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
    """Limit server requests in the block to some seconds.

    By default MLflow retries for minutes. Limits that the user has set are kept.
    """
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    changed = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name in changed:
            os.environ.pop(name, None)


def current_user() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def origin_tags(command: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags for the UI's columns Source, Version, User."""
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
    """Convert numbers to MLflow metrics at step 0."""
    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, 0) for name, value in values.items()]


@contextmanager
def translated_errors(subject: str = "MLflow") -> Iterator[None]:
    """Turn MLflow's errors in the block into one-line RegistryErrors.

    MLflow's warnings are suppressed, and Ctrl-C is deferred to the end of the block.

    Args:
        subject: start of the message.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with warnings.catch_warnings(), defer_sigint():
            warnings.simplefilter("ignore")
            yield
    except (MlflowException, SQLAlchemyError) as error:
        raise RegistryError(f"{subject}: {_without_password(explain_error(error))}") from error
    except OSError as error:
        # A full disk, or the server that stores the files.
        file, text = f"{error.filename}: " if error.filename else "", " ".join(str(error.strerror or error).split())
        raise RegistryError(f"{subject}: {file}{_without_password(text)}; nothing is lost, try again") from error


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def explain_error(error: Exception) -> str:
    """Explain an MLflow error in one line."""
    message = " ".join(str(error).split())
    if answer := re.search(r"failed with error code (\d{3}) .*?Response body: '(.*)'", message):
        return _explain_response(int(answer[1]), answer[2])
    if "not in a valid JSON format" in message:
        return "the address returns a web page, such as a proxy's login, instead of MLflow; check MLFLOW_TRACKING_URI"
    if "failed with exception" in message:  # MLflow's text for a failed connection, with an error of urllib3
        return _explain_connection(message)
    if message.startswith("INTERNAL_ERROR: Response: "):  # JSON without the error code that MLflow always gives
        return f"{_PROXY}, not MLflow, rejects the request: {message.removeprefix('INTERNAL_ERROR: Response: ')}"
    return _BY_ERROR_CODE.get(getattr(error, "error_code", ""), message)


def _explain_response(status: int, body: str) -> str:
    """Explain a response that is not JSON.

    MLflow's login responds with plain text, a proxy with an HTML page.
    """
    for (code, beginning), meaning in _BY_PLAIN_TEXT.items():
        if status == code and body.startswith(beginning):
            return meaning
    return f"{_PROXY}, not MLflow, answers with status {_status_text(status)}; {_advice(status)}"


def _explain_connection(message: str) -> str:
    if repeated := re.search(r"too many (\d{3}) error responses", message):
        status = int(repeated[1])
        return f"{_PROXY}, or the server itself, answers with status {_status_text(status)}; {_advice(status)}"
    if tunnel := re.search(r"Tunnel connection failed: (\d{3})", message):
        status = int(tunnel[1])
        return f"the proxy in HTTPS_PROXY answers with status {_status_text(status)}; {_advice(status)}"
    if "ProxyError" in message:
        return "the proxy in HTTP_PROXY or HTTPS_PROXY does not answer; correct it, or set NO_PROXY for this host"
    if "CERTIFICATE_VERIFY_FAILED" in message:
        return (
            "the server's certificate is not trusted; set REQUESTS_CA_BUNDLE to the file of your authority's "
            "certificates"
        )
    if "SSLError" in message:
        return "the TLS connection failed; check if MLFLOW_TRACKING_URI must begin with http or https"
    if "NameResolutionError" in message or "Failed to resolve" in message:
        return "the host name cannot be resolved; check MLFLOW_TRACKING_URI"
    return NO_ANSWER


def _advice(status: int) -> str:
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return "add the proxy's login to HTTP_PROXY and HTTPS_PROXY, or set NO_PROXY for this host"
    if status in _GATEWAY:
        return "it does not reach the server; finished training is kept, so run the command again later"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "wait, then run the command again; finished training is kept"
    return "ask its administrator for access, set NO_PROXY for this host, or correct MLFLOW_TRACKING_URI"


def _status_text(status: int) -> str:
    try:
        return f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return str(status)
