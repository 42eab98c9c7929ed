"""What `talud predict` and `talud map` have in common: the options of a map, what they print of it, and its record."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from talud.engine.runtime import Model
    from talud.products.record import Prediction

Out = Annotated[Path, typer.Option(help="folder of the map's files; made where it is missing")]
Threshold = Annotated[
    float | None, typer.Option(help="landslide where the probability is at least this; default: the model's own")
]
MinimumArea = Annotated[
    float,
    typer.Option(metavar="M2", min=0, help="leave landslides of less than this many square metres out of the polygons"),
]
Smooth = Annotated[
    bool, typer.Option("--smooth", help="round the corners of the landslides' outlines; their numbers stay")
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
Halo = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="pixels of context around a tile, rounded up to the model's lattice; default, and most: the exact one. "
        "With fewer it is faster, and says how far probabilities may differ.",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="tiles in one pass of the network, each of which takes as much memory again; default: 1 on the CPU, what "
        "2 GB allow on CUDA. The map is the same.",
    ),
]
Provider = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="what the network runs on; auto takes CUDA where it can be used")
]
Precision = Annotated[
    Literal["float32", "int8", "float16"] | None,
    typer.Option(
        help="the model's variant of that precision, made by talud quantize; default: the file that is named, float32 "
        "in the registry"
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="let so many processes share the work and the cores; each may take 3 GB of memory"),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="let the workers of a Dask cluster do the work, such as tcp://10.0.0.1:8786; raster and --out must lie "
        "where they all reach them under the same path",
    ),
]


def workers(number: int | None, scheduler: str | None) -> int | str | None:
    """Who finds the tiles: so many processes, those of a scheduler, or None: this process.

    Raises:
        typer.BadParameter: both are named.
    """
    if number and scheduler:
        raise typer.BadParameter("cannot be set with --scheduler, which has its own workers", param_hint="--workers")
    return number or scheduler


def say(result: Prediction, model: Model, out: Path, raster: str | Path) -> None:
    """Print a summary of the map of a raster."""
    from talud.mapping import domain
    from talud.products import record
    from talud.text import counted

    if result.taken_over:
        print(
            f"went on with {result.taken_over:,} of {counted(result.tiles, 'tile')}, "
            "which an interrupted run had finished"
        )
    print(f"{counted(result.landslides, 'landslide')}, {result.landslide_area_m2 / 10_000:,.1f} ha, in {result.raster}")
    if result.left_out:
        print(f"left out: {result.left_out:,} of less than {result.minimum_area_m2:g} m²")
    print(f"not mapped: {result.share_not_mapped:.1%} of the raster")
    for reason, pixels in result.not_mapped.items():
        print(f"  {reason}: {pixels / result.pixels:.1%}")
    for line in record.reduced(result, model.contract):
        print(line)
    for line in domain.lines(result.distances):
        print(line)
    if domain.verdict(result.distances) in domain.UNLIKE and not model.contract.adapted:
        print(f"  a model adapted to this raster may map it better: {_adapt_command(model, raster)}")
        print("  that takes no labels, and it can multiply false alarms: compare both maps with the image")
    print(f"model: {model.title}; ran on {result.provider}")
    for what, how in record.settings(model, result).items():
        print(f"{what.lower()}: {how}")
    for notice in record.notices(model, result):
        print(f"warning: {notice[:1].lower()}{notice[1:]}")
    print(f"files: {out}")
    print(result.estimate.words if result.estimate else f"no estimate of the landslide area: {result.no_estimate}")


def _adapt_command(model: Model, raster: str | Path) -> str:
    """Return the command that adapts a model to a raster."""
    command = ["talud", "adapt"]
    if model.origin:
        command += [f"{model.name}/{model.version}", str(raster)]
    else:
        adapted = model.path.with_name(f"{model.path.stem}.{Path(str(raster)).stem}.onnx")
        command += [str(model.path), str(raster), "--out", str(adapted)]
    return shlex.join(command)


def remember(out: Path) -> None:
    """Record a map in the project around the working folder, if there is one, where talud lineage finds it.

    A map is whole without it, so what cannot be recorded is said and is no error.
    """
    from talud.errors import TaludError
    from talud.lineage import maps
    from talud.project import root_around

    root = root_around(Path.cwd())
    if root is None:
        return
    try:
        maps.remember(root, out)
    except TaludError as error:
        print(f"talud: the map is not recorded for talud lineage: {error}", file=sys.stderr)
