"""`talud predict`: map the landslides of a raster."""

from __future__ import annotations

from typing import Annotated

import typer

from talud.cli import mapping
from talud.cli.app import app


@app.command("predict")
def predict(
    model: Annotated[
        str,
        typer.Argument(
            help="an .onnx file, an MLflow URI such as models:/NAME@champion, or auto: the registered champion with "
            "most bands that fits the stack"
        ),
    ],
    raster: Annotated[
        str,
        typer.Argument(
            help="the stack to map, or any raster whose bands the model knows by name: a path, or what else GDAL "
            "opens: /vsicurl/https://…, /vsizip/…, /vsis3/…"
        ),
    ],
    out: mapping.Out,
    threshold: mapping.Threshold = None,
    minimum_area: mapping.MinimumArea = 0,
    smooth: mapping.Smooth = False,
    geojson: mapping.Geojson = False,
    tta: mapping.Tta = False,
    tile: mapping.Tile = None,
    halo: mapping.Halo = None,
    batch: mapping.Batch = None,
    provider: mapping.Provider = "auto",
    precision: mapping.Precision = None,
    workers: mapping.Workers = None,
    scheduler: mapping.Scheduler = None,
) -> None:
    """Map the landslides of a raster.

    Writes probability.tif, landslides.tif (0 background, 1 landslide, 255 not mapped), landslides.gpkg (layers
    landslides and not_mapped), summary.html (all that is to be said of the map on one page), quicklook.png,
    prediction.json and timings.json; QGIS shows rasters and layers in the styles that lie beside and within them.
    With --tta: disagreement.tif too, the standard deviation of eight probabilities.

    The raster must fit what the model expects: bands by name, unit, pixel size, plausible values. How far its values
    lie from those that the model learned from stands in summary.html.

    Finished tiles are kept in a hidden folder beside the map's until all is done. When a run was interrupted, the
    same command goes on from them and makes the same files, with as many workers as you like.

    **Examples**

    `talud predict models:/landslide-unet-7band@champion stacks/liboriana.tif --out maps/liboriana`

    `talud predict models/7band.onnx stacks/liboriana.tif --out maps/liboriana --threshold 0.3 --minimum-area 1000`

    `talud predict models:/landslide-unet-7band@champion stacks/liboriana.tif --out maps/liboriana --precision int8`

    `talud predict auto stacks/liboriana.tif --out maps/liboriana --tta`

    `talud predict models/7band.onnx stacks/liboriana.tif --out maps/first_look --halo 32`

    `talud predict models/7band.onnx /vsicurl/https://example.org/liboriana.tif --out maps/liboriana`

    `talud predict models/7band.onnx stacks/liboriana.tif --out maps/liboriana --workers 4`
    """
    from talud.terminal import ended_by_ctrl_c

    by = mapping.workers(workers, scheduler)
    with ended_by_ctrl_c():  # an extension module that is being imported would make an ImportError of it
        from talud import load_model
        from talud.cli.progress import shown
        from talud.data.record import check_current
        from talud.products import prediction

        if model == "auto" or ":/" in model:  # the registry takes as long to import as the rest together
            from talud import selection

    check_current(raster)
    loaded = (
        selection.for_stack(raster, provider, precision) if model == "auto" else load_model(model, provider, precision)
    )
    with shown("mapping", "tiles") as progress:
        result = prediction.predict(
            loaded,
            raster,
            out,
            threshold,
            tile,
            progress,
            halo=halo,
            batch=batch,
            minimum_area=minimum_area,
            smooth=smooth,
            geojson=geojson,
            tta=tta,
            workers=by,
        )
    mapping.say(result, loaded, out, raster)
    mapping.remember(out)
