"""Messages for errors of tracking servers, proxies and the network."""

from __future__ import annotations

import re
from http import HTTPStatus

SILENT = "the server does not answer; what was trained is kept, so start again when it is back"
_LOGIN = "the server refuses the login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to one that it knows"
_FORBIDDEN = "the server does not let the user that MLFLOW_TRACKING_USERNAME names do this; ask its administrator"
_OF_MLFLOW = {"UNAUTHENTICATED": _LOGIN, "PERMISSION_DENIED": _FORBIDDEN}
_IN_PLAIN_TEXT = {(401, "You are not authenticated"): _LOGIN, (403, "Permission denied"): _FORBIDDEN}
_PROXY = "a proxy or gateway before the server"
_GATEWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)


def explain(error: Exception) -> str:
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
    return SILENT


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
