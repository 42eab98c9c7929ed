"""The process that serves."""

from __future__ import annotations

import socket
import threading
import time
import webbrowser

import uvicorn

from talud.errors import OutputError
from talud.serving import logs
from talud.serving.app import create_app
from talud.serving.database import Database
from talud.serving.headers import PunctualProtocol
from talud.serving.keeping import alone
from talud.serving.settings import Settings


def check(settings: Settings, host: str, port: int) -> None:
    """See that a service can be started, before it says that it is.

    Raises:
        ParamsError: the database's URL cannot be used.
        OutputError: the port is taken, the database cannot be opened, or another service uses the results.
    """
    with alone(settings.results), Database.opened(settings.database_url):
        pass
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise OutputError(f"{host}:{port} cannot be used: {reason}; name another --port") from error


def show(host: str, port: int, page: str) -> None:
    """Open a page in the browser of whoever sits here, once the service answers; does not wait for it."""

    def wait() -> None:
        while True:
            try:
                socket.create_connection((host, port), timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                webbrowser.open(page)
                return

    threading.Thread(target=wait, name="browser", daemon=True).start()


def run(settings: Settings, host: str, port: int, *, open_to_all: bool) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        settings: of the agency.
        host: where to listen.
        port: likewise.
        open_to_all: whether no key is asked for.
    """
    logs.configure(settings.log)
    app = create_app(settings, open_to_all=open_to_all)
    keys = "no key is asked for" if open_to_all else "keys are required"
    logs.log.info("starts at %s port %s; %s; results in %s", host, port, keys, settings.results)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        http=PunctualProtocol,
        log_config=None,
        timeout_graceful_shutdown=5,
    )
    logs.log.info("ends")
