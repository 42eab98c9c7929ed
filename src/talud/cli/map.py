"""`talud map`: from the sources of a basin to its map, in one command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from talud.cli import mapping, sources
from talud.cli.app import app
from talud.mapping.options import MapOptions

if TYPE_CHECKING:
    pass


@app.command("map")
@mapping.with_map_options
@sources.with_sources
def map_sources(
    out: mapping.Out,
    options: MapOptions,
    given: sources.Sources,
    model: Annotated[
        str,
        typer.Option(
            help="an .onnx file, an MLflow URI such as models:/NAME@champion, or auto: the registered champion with "
            "most bands that the sources support"
        ),
    ] = "auto",
) -> None:
    """Map the landslides of a basin from its sources: no project, no stack, one command.

    Makes the stack that the model asks for (stack.tif, for a look in QGIS) and maps it: all files are those of talud
    predict, in one folder, whose name is the basin's. When a run was interrupted, the same command goes on: a stack
    that is whole and of the same sources and options is not made again, and finished tiles are not computed again.

    **Examples**

        talud map --optical image.tif --dtm dtm.tif --sar-pre before.tif --sar-post after.tif --cloud clouds.gpkg
        --event 2015-05-18 --out maps/liboriana

        talud map --model models/5band.onnx --optical image.tif --dtm dtm.tif --out maps/liboriana
    """
    files = given.files
    if not files.keys() - {"cloud", "sar_mask"}:
        raise typer.BadParameter("give at least one source: --optical, --dtm, --sar-pre or --sar-post FILE")
    area = given.area()

    from talud.process import sigint_ends_process

    with sigint_ends_process():  # as in talud predict
        import talud.products.prediction
        from talud import basin, selection
        from talud.cli.progress import shown

    loaded = (
        selection.for_sources(area, files, options.provider, options.precision)
        if model == "auto"
        else talud.load_model(model, options.provider, options.precision)
    )
    with shown("stack", "windows") as progress:
        stack = basin.prepare(loaded.contract, area, files, out, progress, loaded.path)
    with shown("mapping", "tiles") as progress:
        result = talud.predict(loaded, stack, out, options, progress)
    mapping.say(result, loaded, out, stack)
    sources.say_bands(stack)
    mapping.remember(out)
