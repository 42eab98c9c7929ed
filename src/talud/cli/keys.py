"""`talud keys`: who may use the service."""

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

keys = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(keys, name="keys", help="Make, list and revoke the API keys of the service.")

Name = Annotated[str, typer.Argument(help="of whoever has the key")]


@keys.command("add")
def add(
    name: Name,
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
    with kept() as store:
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

    with kept() as store:
        found = store.all()
    if not found:
        print("there is no key yet; talud keys add makes one")
        return
    table = Table("name", "scope", "made", "expires")
    for key in found:
        table.add_row(Text(key.name), key.scope, f"{key.created:%Y-%m-%d %H:%M}", _expiry(key))
    Console().print(table)


@keys.command("revoke")
def revoke(name: Name) -> None:
    """Take a key away: it opens nothing from then on. What its holder made stays.

    **Examples**

        talud keys revoke "Geological Survey"
    """
    with kept() as store:
        store.revoke(name)
    print(f"the key of {name} opens nothing any more")


def _expiry(key: Key) -> str:
    """Return the day on which a key expires, in words for a table."""
    if key.expires is None:
        return "never"
    return f"{key.expires:%Y-%m-%d}{' (expired)' if key.expired else ''}"


@contextmanager
def kept() -> Iterator[KeyStore]:
    """The keys of the service that the environment, or the project around, tells of."""
    try:
        from talud.serving.database import Database
        from talud.serving.keys import KeyStore
        from talud.serving.settings import Settings
    except ImportError as error:
        raise ParamsError("the service is not installed: pip install 'talud[serve]'") from error
    with Database.opened(Settings.load().database_url) as database:
        yield KeyStore(database)
