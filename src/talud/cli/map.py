"""`talud map`: from the sources of a basin to its map, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talud.cli import mapping, sources
from talud.cli.app import app
from talud.mapping.options import MapOptions

if TYPE_CHECKING:
    from talud.params import Source


@app.command("map")
@mapping.with_map_options
def map_sources(
    out: mapping.Out,
    options: MapOptions,
    model: Annotated[
        str,
        typer.Option(
            help="an .onnx file, an MLflow URI such as models:/NAME@champion, or auto: the registered champion with "
            "most bands that the sources support"
        ),
    ] = "auto",
    optical: sources.Optical = None,
    dtm: sources.Dtm = None,
    sar_pre: sources.SarPre = None,
    sar_post: sources.SarPost = None,
    cloud: sources.Cloud = None,
    sar_mask: sources.SarMask = None,
    sar_unit: sources.SarUnit = None,
    optical_bands: sources.OpticalBands = None,
    optical_scale: sources.OpticalScale = None,
    optical_offset: sources.OpticalOffset = None,
    sar_bands: sources.SarBands = None,
    event: sources.Event = None,
    optical_date: sources.OpticalDate = None,
    sar_pre_date: sources.SarPreDate = None,
    sar_post_date: sources.SarPostDate = None,
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
    given: dict[Source, Path | None] = {
        "optical": optical, "dtm": dtm, "sar_pre": sar_pre, "sar_post": sar_post, "cloud": cloud, "sar_mask": sar_mask,
    }  # fmt: skip
    files = {name: path for name, path in given.items() if path}
    if not files.keys() - {"cloud", "sar_mask"}:
        raise typer.BadParameter("give at least one source: --optical, --dtm, --sar-pre or --sar-post FILE")
    dates = {"optical": optical_date, "sar_pre": sar_pre_date, "sar_post": sar_post_date}
    area = sources.area(optical_bands, sar_bands, sar_unit, event, dates, optical_scale, optical_offset)

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
