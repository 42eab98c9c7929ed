"""What `talud predict` and `talud map` have in common: the options of a map, and what they print of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from talud.inference.prediction import Prediction
    from talud.inference.runtime import Model

Out = Annotated[Path, typer.Option(help="folder of the map's files; made where it is missing")]
Threshold = Annotated[
    float | None, typer.Option(help="landslide where the probability is at least this; default: the model's own")
]
MinimumArea = Annotated[
    float,
    typer.Option(metavar="M2", min=0, help="leave landslides of less than this many square metres out of the polygons"),
]
Geojson = Annotated[bool, typer.Option("--geojson", help="write landslides.geojson too, in longitude and latitude")]
Tta = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="average over the raster turned and mirrored in all eight ways, and write disagreement.tif; takes eight "
        "times as long",
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(min=1, help="longest side of a tile in pixels; default: what 2 GB allow. The map is the same."),
]
Provider = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="what the network runs on; auto takes CUDA where it can be used")
]


def say(result: Prediction, model: Model, out: Path) -> None:
    """Print what a map came to."""
    if result.taken_over:
        print(f"went on with {result.taken_over} of {result.tiles} tiles, which an interrupted run had finished")
    print(f"{result.landslides:,} landslides, {result.landslide_area_m2 / 10_000:,.1f} ha, in {result.raster}")
    if result.left_out:
        print(f"left out: {result.left_out:,} of less than {result.minimum_area_m2:g} m²")
    print(f"not mapped: {result.share_not_mapped:.1%} of the raster")
    for reason, pixels in result.not_mapped.items():
        print(f"  {reason}: {pixels / result.pixels:.1%}")
    print(f"model: {model.title}; ran on {result.provider}")
    if model.origin and model.origin.chosen:
        print(f"chosen: {model.origin.chosen}")
    print(f"files: {out}")
