"""Commands that make maps, with their options and printed text."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from talud.cli import sources
from talud.cli.app import app, with_options
from talud.mapping.options import DEFAULT_OPTIONS, MapOptions

if TYPE_CHECKING:
    from talud.engine.runtime import Model
    from talud.products.map_record import Prediction

OutFolder = Annotated[Path, typer.Option(help="folder of the map's files; made where it is missing")]


def _option(name: str, *flags: str, metavar: str | None = None, least: float | None = None) -> Any:
    return typer.Option(*flags, help=MapOptions.model_fields[name].description, metavar=metavar, min=least)


MAP_OPTIONS: dict[str, Any] = {
    "threshold": Annotated[float | None, _option("threshold")],
    "minimum_area": Annotated[float, _option("minimum_area", metavar="M2", least=0)],
    "smooth": Annotated[bool, _option("smooth", "--smooth")],
    "geojson": Annotated[bool, _option("geojson", "--geojson")],
    "tta": Annotated[bool, _option("tta", "--tta")],
    "tile": Annotated[int | None, _option("tile", least=1)],
    "halo": Annotated[int | None, _option("halo", least=0)],
    "batch": Annotated[int | None, _option("batch", least=1)],
    "provider": Annotated[Literal["auto", "cpu", "cuda"], _option("provider")],
    "precision": Annotated[Literal["float32", "int8", "float16"] | None, _option("precision")],
    "workers": Annotated[int | None, _option("workers", least=1)],
    "scheduler": Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="let the workers of a Dask cluster do the work, such as tcp://10.0.0.1:8786; raster and --out must "
            "lie where they all reach them under the same path",
        ),
    ],
}


def choose_workers(number: int | None, scheduler: str | None) -> int | str | None:
    """Return the workers that are asked for: a number of processes, a scheduler's address, or None.

    Raises:
        typer.BadParameter: both are named.
    """
    if number and scheduler:
        raise typer.BadParameter("cannot be set with --scheduler, which has its own workers", param_hint="--workers")
    return number or scheduler


def _map_options(given: dict[str, Any]) -> MapOptions:
    asked = choose_workers(given["workers"], given.pop("scheduler"))
    return MapOptions(**given | {"workers": asked})


# Gives a command the options of a map; its parameter `options` is made of them.
with_map_options = with_options(
    "options", {name: (kind, getattr(DEFAULT_OPTIONS, name, None)) for name, kind in MAP_OPTIONS.items()}, _map_options
)


@app.command("predict")
@with_map_options
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
    out: OutFolder,
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
        from talud.cli.progress import show_progress
        from talud.data.record import check_current

        if model == "auto" or ":/" in model:  # the registry takes as long to import as the rest together
            import talud.basin

    check_current(raster)
    loaded = talud.load_model_for(raster, model, options)
    with show_progress("mapping", "tiles") as progress:
        result = talud.predict(loaded, raster, out, options, progress)
    print_summary(result, loaded, out, raster)


@app.command("map")
@with_map_options
@sources.with_sources
def map_sources(
    out: OutFolder,
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
        from talud import basin
        from talud.cli.progress import show_progress

    loaded = (
        basin.open_for_sources(area, files, options.provider, options.precision)
        if model == "auto"
        else talud.load_model(model, options.provider, options.precision)
    )
    with show_progress("stack", "windows") as progress:
        stack = basin.prepare_stack(loaded.contract, area, files, out, progress, loaded.path)
    with show_progress("mapping", "tiles") as progress:
        result = talud.predict(loaded, stack, out, options, progress)
    print_summary(result, loaded, out, stack)
    sources.print_bands(stack)


def print_summary(result: Prediction, model: Model, out: Path, raster: str | Path) -> None:
    """Print a summary of the map of a raster."""
    from talud.mapping import domain
    from talud.products import map_record
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
    for line in map_record.reduced_lines(result, model.contract):
        print(line)
    for line in domain.report_lines(result.distances):
        print(line)
    if domain.overall_verdict(result.distances) in domain.UNLIKE_VERDICTS and not model.contract.derived.adapted:
        print(f"  a model adapted to this raster may map it better: {_adapt_command(model, raster)}")
        print("  that takes no labels, and it can multiply false alarms: compare both maps with the image")
    print(f"model: {model.title}; ran on {result.provider}")
    for what, how in map_record.unusual_settings(model, result).items():
        print(f"{what.lower()}: {how}")
    for notice in map_record.notices(model, result):
        print(f"warning: {notice[:1].lower()}{notice[1:]}")
    print(f"files: {out}")
    print(result.estimate.sentence if result.estimate else f"no estimate of the landslide area: {result.no_estimate}")


def _adapt_command(model: Model, raster: str | Path) -> str:
    """Return the command that adapts a model to a raster."""
    command = ["talud", "adapt"]
    if model.registered_as:
        command += [f"{model.name}/{model.version}", str(raster)]
    else:
        adapted = model.path.with_name(f"{model.path.stem}.{Path(str(raster)).stem}.onnx")
        command += [str(model.path), str(raster), "--out", str(adapted)]
    return shlex.join(command)
