"""`talud predict`: map the landslides of a raster."""

from __future__ import annotations

from typing import Annotated

import typer

from talud.cli import mapping
from talud.cli.app import app
from talud.mapping.options import MapOptions


@app.command("predict")
@mapping.with_map_options
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
    options: MapOptions,
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
    from talud.process import sigint_ends_process

    with sigint_ends_process():  # an extension module that is being imported would make an ImportError of it
        import talud.products.prediction
        from talud.cli.progress import shown
        from talud.data.record import check_current

        if model == "auto" or ":/" in model:  # the registry takes as long to import as the rest together
            import talud.selection

    check_current(raster)
    loaded = talud.load_model_for(raster, model, options)
    with shown("mapping", "tiles") as progress:
        result = talud.predict(loaded, raster, out, options, progress)
    mapping.say(result, loaded, out, raster)
    mapping.remember(out)
