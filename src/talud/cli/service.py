"""Commands for the service, its keys, and the MLflow UI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from talud.cli.app import app
from talud.errors import ParamsError

if TYPE_CHECKING:
    from talud.serving.keys import KeyStore
    from talud.serving.tables import Key


@app.command("serve")
def serve(
    host: Annotated[
        str, typer.Option(help="Where to listen. Others on the network reach 0.0.0.0, and need a key: talud keys add.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8080,
) -> None:
    """Serve registered models by OGC API – Processes, and the review page, until Ctrl-C.

    Inside a project it maps the rasters in stacks/ by the models of the project's own registry. All else is set in the
    environment, by names that begin with TALUD_SERVICE_ (docs/how-to/operate-the-service.md).

    Where it is started at a desktop, for nobody but its user, the page opens in the browser.

    Jobs survive: whatever ends the service, when it is started again they go on from their finished tiles.

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
            raise ParamsError("the service's libraries are not installed: pip install 'talud[serve]'") from error
    settings = Settings.load()
    open_to_all = settings.open_to_all(host)
    check_start(settings, host, port)
    page = f"http://{f'[{host}]' if ':' in host else host}:{port}/page/"
    print(f"talud serves, until Ctrl-C: {page}")
    print(f"rasters: {settings.data}; maps: {settings.results}")
    if open_to_all:
        print(f"API keys are off: it listens at {host} alone, and whoever uses this machine may do all", flush=True)
        if has_desktop():
            open_browser(host, port, page)
    else:
        with open_key_store() as keys:
            if not keys.all():
                print("nobody can use it yet: talud keys add NAME --scope run makes a key", flush=True)
    run_service(settings, host, port, open_to_all=open_to_all)


keys = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(keys, name="keys", help="Make, list and revoke the API keys of the service.")

KeyName = Annotated[str, typer.Argument(help="of whoever has the key")]


@keys.command("add")
def add(
    name: KeyName,
    scope: Annotated[
        Literal["read", "run", "admin"],
        typer.Option(help="read: look at maps; run: also map and review; admin: also rule over what others did"),
    ] = "read",
    expires_days: Annotated[
        int, typer.Option(min=1, max=36500, help="After how many days the key opens nothing any more.")
    ] = 365,
) -> None:
    """Make a key, and print it: once, for what is stored is a digest from which it cannot be found.

    The service knows it at once. Clients send it as Authorization: Bearer KEY.

    **Examples**

        talud keys add "Geological Survey" --scope run
    """
    with open_key_store() as store:
        print(store.add(name, scope, expires_days))


@keys.command("list")
def list_() -> None:
    """List the keys: whose they are, what they allow, since when and until when.

    **Examples**

        talud keys list
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    with open_key_store() as store:
        found = store.all()
    if not found:
        print("there is no key yet; talud keys add makes one")
        return
    table = Table("name", "scope", "made", "expires")
    for key in found:
        table.add_row(Text(key.name), key.scope, f"{key.created:%Y-%m-%d %H:%M}", _expiry(key))
    Console().print(table)


@keys.command("revoke")
def revoke(name: KeyName) -> None:
    """Take a key away: it opens nothing from then on. What its holder made stays.

    **Examples**

        talud keys revoke "Geological Survey"
    """
    with open_key_store() as store:
        store.revoke(name)
    print(f"the key of {name} opens nothing any more")


def _expiry(key: Key) -> str:
    """Return the day on which a key expires, in words for a table."""
    if key.expires is None:
        return "never"
    return f"{key.expires:%Y-%m-%d}{' (expired)' if key.expired else ''}"


@contextmanager
def open_key_store() -> Iterator[KeyStore]:
    """Yield the store of keys of the service of the environment or the project."""
    try:
        from talud.serving.database import Database
        from talud.serving.keys import KeyStore
        from talud.serving.settings import Settings
    except ImportError as error:
        raise ParamsError("the service is not installed: pip install 'talud[serve]'") from error
    with Database.open(Settings.load().database_url) as database:
        yield KeyStore(database)


@app.command("ui")
def ui(
    host: Annotated[str, typer.Option(help="Where to listen. Others on the network see the UI at 0.0.0.0.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 5000,
) -> None:
    """Open the MLflow UI on the project's own store, until Ctrl-C.

    Where MLFLOW_TRACKING_URI names a server, its UI is there already: the address is printed.

    **Examples**

        talud ui

        talud ui --port 5001
    """
    from talud.project import Project
    from talud.registry import Store, serve_ui

    root = Project.find().root
    store = Store.open(root)
    if store.server_url:
        print(f"MLFLOW_TRACKING_URI names a server; its UI is there already: {store.trials_url(store.server_url)}")
        return
    print(f"MLflow UI, until Ctrl-C: {store.trials_url(f'http://{host}:{port}')}")
    serve_ui(root, host, port)
