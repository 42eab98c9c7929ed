"""`talud ui`: look at trials and models in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from talud.cli.app import app


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
    from talud.registry import ui

    root = Project.find().root
    if address := ui.server(root):
        print(f"MLFLOW_TRACKING_URI names a server; its UI is there already: {ui.page(address)}")
        return
    print(f"MLflow UI, until Ctrl-C: {ui.page(f'http://{host}:{port}')}")
    ui.serve(root, host, port)
