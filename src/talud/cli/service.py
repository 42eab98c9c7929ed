"""Commands of the web service and the MLflow UI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from talud.cli.app import SERVICE, app
from talud.errors import ParamsError

if TYPE_CHECKING:
    from talud.serving.keys import KeyStore
    from talud.serving.tables import Key


@app.command("serve", rich_help_panel=SERVICE)
def serve(
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. 0.0.0.0 accepts other machines, whose users need an API key (talud keys add)."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
) -> None:
    """Start the web service: OGC API – Processes and review page.

    Inside a project, it maps the rasters in stacks/ with the models of the project's registry. All other settings are
    environment variables that begin with TALUD_SERVICE_ (docs/how-to/operate-the-service.md). Runs until Ctrl-C.

    On a desktop, if only this machine can reach the service, the review page opens in the browser.

    Jobs survive a restart: they resume from their finished tiles.

    **Examples**

        talud serve

        TALUD_SERVICE_DATA=/srv/rasters TALUD_SERVICE_RESULTS=/srv/maps talud serve --host 0.0.0.0
    """
    from talud.errors import ParamsError
    from talud.process import has_desktop, sigint_ends_process

    with sigint_ends_process():
        try:
            from talud.serving.raster_paths import confine_gdal

            confine_gdal(warping=True)
            from talud.serving.app import check_start, open_browser
            from talud.serving.app import serve as run_service
            from talud.serving.settings import Settings
        except ImportError as error:
            raise ParamsError("the libraries of the service are not installed: pip install 'talud[serve]'") from error
    settings = Settings.load()
    open_to_all = settings.open_to_all(host)
    check_start(settings, host, port)
    page = f"http://{f'[{host}]' if ':' in host else host}:{port}/page/"
    print(f"review page: {page} (stop with Ctrl-C)")
    print(f"rasters: {settings.data}; maps: {settings.results}")
    if open_to_all:
        print(
            f"API keys are off: the service listens only on {host}; every user of this machine has all rights",
            flush=True,
        )
        if has_desktop():
            open_browser(host, port, page)
    else:
        with open_key_store() as keys:
            if not keys.all():
                print("no API key exists yet; create one with: talud keys add NAME --scope run", flush=True)
    run_service(settings, host, port, open_to_all=open_to_all)


keys = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(keys, name="keys", help="Create, list and revoke API keys of the service.", rich_help_panel=SERVICE)

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the person or organisation that uses the key.")]


@keys.command("add")
def add(
    name: KeyName,
    scope: Annotated[
        Literal["read", "run", "admin"],
        typer.Option(help="read: view maps; run: also start jobs and review; admin: also manage the work of others."),
    ] = "read",
    expires_days: Annotated[int, typer.Option(min=1, max=36500, help="Days until the key expires.")] = 365,
) -> None:
    """Create an API key and print it.

    The key is printed only once: the service stores its hash. It is valid immediately, also in a running service.
    Clients send it as the header Authorization: Bearer KEY.

    **Examples**

        talud keys add "Geological Survey" --scope run
    """
    with open_key_store() as store:
        print(store.add(name, scope, expires_days))


@keys.command("list")
def list_() -> None:
    """List API keys with scope, creation and expiry.

    **Examples**

        talud keys list
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    with open_key_store() as store:
        found = store.all()
    if not found:
        print("no API key exists yet; create one with: talud keys add NAME")
        return
    table = Table("name", "scope", "created", "expires")
    for key in found:
        table.add_row(Text(key.name), key.scope, f"{key.created:%Y-%m-%d %H:%M}", _expiry(key))
    Console().print(table)


@keys.command("revoke")
def revoke(name: KeyName) -> None:
    """Revoke an API key.

    Maps and reviews made with the key are kept.

    **Examples**

        talud keys revoke "Geological Survey"
    """
    with open_key_store() as store:
        store.revoke(name)
    print(f"the API key of {name} is revoked")


def _expiry(key: Key) -> str:
    """Format the expiry date of a key."""
    if key.expires is None:
        return "never"
    return f"{key.expires:%Y-%m-%d}{' (expired)' if key.expired else ''}"


@contextmanager
def open_key_store() -> Iterator[KeyStore]:
    """Yield the key store of the configured service."""
    try:
        from talud.serving.database import Database
        from talud.serving.keys import KeyStore
        from talud.serving.settings import Settings
    except ImportError as error:
        raise ParamsError("the libraries of the service are not installed: pip install 'talud[serve]'") from error
    with Database.open(Settings.load().database_url) as database:
        yield KeyStore(database)


@app.command("ui", rich_help_panel=SERVICE)
def ui(
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0 accepts other machines.")] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
) -> None:
    """Start the MLflow UI to browse trials and registered models.

    Shows the project's own store, until Ctrl-C. If MLFLOW_TRACKING_URI names a server, only the address of its UI is
    printed.

    **Examples**

        talud ui

        talud ui --port 5001
    """
    from talud.project import Project
    from talud.registry import Store, serve_ui

    root = Project.find().root
    store = Store.open(root)
    if store.server_url:
        print(f"MLFLOW_TRACKING_URI names a server; open its UI: {store.trials_url(store.server_url)}")
        return
    print(f"MLflow UI (stop with Ctrl-C): {store.trials_url(f'http://{host}:{port}')}")
    serve_ui(root, host, port)
