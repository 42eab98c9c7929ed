"""`talud serve`: the service that maps rasters for others, and the page on which its maps are reviewed."""

from __future__ import annotations

from typing import Annotated

import typer

from talud.cli.app import app
from talud.cli.keys import kept


@app.command("serve")
def serve(
    host: Annotated[
        str, typer.Option(help="Where to listen. Others on the network reach 0.0.0.0, and need a key: talud keys add.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8080,
) -> None:
    """Serve registered models by OGC API – Processes, and the review page, until Ctrl-C.

    Inside a project it maps the rasters in stacks/ by the models of the project's own registry. All else is set in the
    environment, by names that begin with TALUD_SERVICE_ (docs/operations.md).

    Where it is started at a desktop, for nobody but its user, the page opens in the browser.

    Jobs survive: whatever ends the service, when it is started again they go on from their finished tiles.

    **Examples**

        talud serve

        TALUD_SERVICE_DATA=/srv/rasters TALUD_SERVICE_RESULTS=/srv/maps talud serve --host 0.0.0.0
    """
    from talud.errors import ParamsError
    from talud.terminal import at_a_desktop, ended_by_ctrl_c

    with ended_by_ctrl_c():
        try:
            from talud.serving import places

            places.confine_gdal(warping=True)
            from talud.serving import server
            from talud.serving.settings import Settings
        except ImportError as error:
            raise ParamsError("the service's libraries are not installed: pip install 'talud[serve]'") from error
    settings = Settings.load()
    open_to_all = settings.open_to_all(host)
    server.check(settings, host, port)
    page = f"http://{f'[{host}]' if ':' in host else host}:{port}/page/"
    print(f"talud serves, until Ctrl-C: {page}")
    print(f"rasters: {settings.data}; maps: {settings.results}")
    if open_to_all:
        print(f"API keys are off: it listens at {host} alone, and whoever uses this machine may do all", flush=True)
        if at_a_desktop():
            server.show(host, port, page)
    else:
        with kept() as keys:
            if not keys.all():
                print("nobody can use it yet: talud keys add NAME --scope run makes a key", flush=True)
    server.run(settings, host, port, open_to_all=open_to_all)
