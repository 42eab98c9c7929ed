"""`talud predict`: map the landslides of a raster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from talud.cli.app import app


@app.command("predict")
def predict(
    model: Annotated[str, typer.Argument(help="an .onnx file, or an MLflow URI such as models:/NAME@champion")],
    raster: Annotated[Path, typer.Argument(help="the stack to map, or any raster whose bands the model knows by name")],
    out: Annotated[Path, typer.Option(help="folder of the map's files; made where it is missing")],
    threshold: Annotated[
        float | None, typer.Option(help="landslide where the probability is at least this; default: the model's own")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="longest side of a tile in pixels; default: what 2 GB allow. The map is the same."),
    ] = None,
) -> None:
    """Map the landslides of a raster.

    Writes probability.tif, landslides.tif (0 background, 1 landslide, 255 not mapped), landslides.gpkg (layers
    landslides and not_mapped), quicklook.png and prediction.json. The raster must fit what the model expects: bands
    by name, unit, pixel size, plausible values.

    **Examples**

    `talud predict models:/landslide-unet-7band@champion stacks/liboriana.tif --out maps/liboriana`

    `talud predict models/7band.onnx stacks/liboriana.tif --out maps/liboriana --threshold 0.3`
    """
    from talud import load_model
    from talud.cli.progress import shown
    from talud.inference import prediction

    loaded = load_model(model)
    with shown("mapping", "tiles") as progress:
        result = prediction.predict(loaded, raster, out, threshold, tile, progress)
    print(f"{result.landslides:,} landslides, {result.landslide_area_m2 / 10_000:,.1f} ha, in {result.raster}")
    print(f"not mapped: {result.share_not_mapped:.1%} of the raster")
    for reason, pixels in result.not_mapped.items():
        print(f"  {reason}: {pixels / result.pixels:.1%}")
    print(f"model: {loaded.title}; ran on {result.provider}")
    print(f"files: {out}")
