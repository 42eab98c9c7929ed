"""`talud predict`: map the landslides of a raster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from talud.cli.app import app


@app.command("predict")
def predict(
    model: Annotated[str, typer.Argument(help="an .onnx file, or an MLflow URI such as models:/NAME@champion")],
    raster: Annotated[
        str,
        typer.Argument(
            help="the stack to map, or any raster whose bands the model knows by name: a path, or what else GDAL "
            "opens: /vsicurl/https://…, /vsizip/…, /vsis3/…"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder of the map's files; made where it is missing")],
    threshold: Annotated[
        float | None, typer.Option(help="landslide where the probability is at least this; default: the model's own")
    ] = None,
    minimum_area: Annotated[
        float,
        typer.Option(
            metavar="M2", min=0, help="leave landslides of less than this many square metres out of the polygons"
        ),
    ] = 0,
    geojson: Annotated[
        bool, typer.Option("--geojson", help="write landslides.geojson too, in longitude and latitude")
    ] = False,
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="longest side of a tile in pixels; default: what 2 GB allow. The map is the same."),
    ] = None,
    halo: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="pixels of context around a tile, rounded up to the model's lattice; default, and most: the exact "
            "one. With fewer it is faster, and says how far probabilities may differ.",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="tiles in one pass of the network; default: 1 on the CPU, what 2 GB allow on CUDA. The map is the "
            "same.",
        ),
    ] = None,
    provider: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="what the network runs on; auto takes CUDA where it can be used"),
    ] = "auto",
) -> None:
    """Map the landslides of a raster.

    Writes probability.tif, landslides.tif (0 background, 1 landslide, 255 not mapped), landslides.gpkg (layers
    landslides and not_mapped), quicklook.png, prediction.json and timings.json; QGIS shows rasters and layers in the
    styles that lie beside and within them. The raster must fit what the model expects: bands by name, unit, pixel
    size, plausible values.

    Finished tiles are kept in a hidden folder beside the map's until all is done. When a run was interrupted, the
    same command goes on from them and makes the same files.

    **Examples**

    `talud predict models:/landslide-unet-7band@champion stacks/liboriana.tif --out maps/liboriana`

    `talud predict models/7band.onnx stacks/liboriana.tif --out maps/liboriana --threshold 0.3 --minimum-area 1000`

    `talud predict models/7band.onnx stacks/liboriana.tif --out maps/first_look --halo 32`

    `talud predict models/7band.onnx /vsicurl/https://example.org/liboriana.tif --out maps/liboriana`
    """
    from talud import load_model
    from talud.cli.progress import shown
    from talud.inference import prediction

    loaded = load_model(model, provider)
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
            geojson=geojson,
        )
    if result.taken_over:
        print(f"went on with {result.taken_over} of {result.tiles} tiles, which an interrupted run had finished")
    print(f"{result.landslides:,} landslides, {result.landslide_area_m2 / 10_000:,.1f} ha, in {result.raster}")
    if result.left_out:
        print(f"left out: {result.left_out:,} of less than {minimum_area:g} m²")
    print(f"not mapped: {result.share_not_mapped:.1%} of the raster")
    for reason, pixels in result.not_mapped.items():
        print(f"  {reason}: {pixels / result.pixels:.1%}")
    if result.halo < result.exact_halo:
        print(f"halo {result.halo} instead of {result.exact_halo}: {_cost(result.halo_error)}")
    print(f"model: {loaded.title}; ran on {result.provider}")
    print(f"files: {out}")


def _cost(error: float | None) -> str:
    """What a smaller halo costs, in words."""
    if error is None:
        return "probabilities differ; how far was not measured for this model"
    if error == 0:
        return "probabilities are exact, for the raster is one tile"
    return f"probabilities differed by up to {error:.1e} on windows of the training areas"
