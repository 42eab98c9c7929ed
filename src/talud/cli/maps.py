"""Commands that make maps."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from talud.cli import sources
from talud.cli.app import MAPS, app, with_options
from talud.mapping.options import DEFAULT_OPTIONS, MapOptions

if TYPE_CHECKING:
    from talud.engine.runtime import Model
    from talud.products.map_record import Prediction

OutFolder = Annotated[Path, typer.Option(help="Folder for the files of the map; created if missing.")]


def _option(name: str, *flags: str, metavar: str | None = None, least: float | None = None) -> Any:
    return typer.Option(*flags, help=as_sentence(MapOptions.model_fields[name].description), metavar=metavar, min=least)


def as_sentence(text: str | None) -> str:
    """Return a description as a sentence."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}." if text else ""


MAP_OPTIONS: dict[str, Any] = {
    "threshold": Annotated[float | None, _option("threshold")],
    "minimum_area": Annotated[float, _option("minimum_area", metavar="M2", least=0)],
    "smooth": Annotated[bool, _option("smooth", "--smooth")],
    "geojson": Annotated[bool, _option("geojson", "--geojson")],
    "tta": Annotated[bool, _option("tta", "--tta")],
    "tile": Annotated[int | None, _option("tile", least=1)],
    "halo": Annotated[int | None, _option("halo", least=0)],
    "batch": Annotated[int | None, _option("batch", least=1)],
    "memory": Annotated[str | None, _option("memory", metavar="SIZE")],
    "provider": Annotated[Literal["auto", "cpu", "cuda"], _option("provider")],
    "precision": Annotated[Literal["float32", "int8", "float16"] | None, _option("precision")],
    "workers": Annotated[int | None, _option("workers", least=1)],
    "scheduler": Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address of a Dask scheduler whose workers compute the map, such as tcp://10.0.0.1:8786. All workers "
            "must reach the raster and --out under the same path.",
        ),
    ],
}


def choose_workers(number: int | None, scheduler: str | None) -> int | str | None:
    """Return the number of processes, a scheduler's address, or None.

    Raises:
        typer.BadParameter: both are given.
    """
    if number and scheduler:
        raise typer.BadParameter(
            "cannot be combined with --scheduler, which has its own workers", param_hint="--workers"
        )
    return number or scheduler


def _map_options(given: dict[str, Any]) -> MapOptions:
    requested = choose_workers(given["workers"], given.pop("scheduler"))
    return MapOptions(**given | {"workers": requested})


# Decorator that replaces the parameter `options` of a command by the options of a map.
with_map_options = with_options(
    "options", {name: (kind, getattr(DEFAULT_OPTIONS, name, None)) for name, kind in MAP_OPTIONS.items()}, _map_options
)


@app.command("predict", rich_help_panel=MAPS)
@with_map_options
def predict(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model: an .onnx file, an MLflow URI such as models:/NAME@champion, or auto for the registered "
            "champion with the most bands that fits the stack.",
        ),
    ],
    raster: Annotated[
        str,
        typer.Argument(
            metavar="RASTER",
            help="Stack to map, or any raster with the band names that the model expects: a path, or another name "
            "that GDAL opens: /vsicurl/https://…, /vsizip/…, /vsis3/…",
        ),
    ],
    out: OutFolder,
    options: MapOptions,
) -> None:
    """Map landslides in a raster stack with a trained model.

    Writes probability.tif, landslides.tif (0 background, 1 landslide, 255 not mapped), landslides.gpkg (layers
    landslides and not_mapped), summary.html (results, warnings and settings on one page), quicklook.png,
    prediction.json and timings.json. QGIS styles are written next to the rasters and into the GeoPackage. With --tta
    also disagreement.tif, the standard deviation of the eight probabilities of a pixel.

    The raster must match the model's contract: band names, units, pixel size and plausible values. summary.html states
    how far its values differ from the training data.

    Finished tiles are kept in a hidden folder next to the map until the map is complete. After an interruption, the
    same command resumes from them and writes identical files, with any number of workers.

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

    # An extension module that is interrupted during its import would raise ImportError.
    with sigint_ends_process():
        import talud.products.prediction
        from talud.cli.progress import show_progress
        from talud.data.stack_record import check_raster_current

        # The registry takes as long to import as all the rest.
        if model == "auto" or ":/" in model:
            import talud.basin

    check_raster_current(raster)
    loaded = talud.load_model_for(raster, model, options)
    with show_progress("mapping", "tiles") as progress:
        result = talud.predict(loaded, raster, out, options, progress)
    print_summary(result, loaded, out, raster)


@app.command("map", rich_help_panel=MAPS)
@with_map_options
@sources.with_sources
def map_sources(
    out: OutFolder,
    options: MapOptions,
    given: sources.Sources,
    model: Annotated[
        str,
        typer.Option(
            help="Model: an .onnx file, an MLflow URI such as models:/NAME@champion, or auto for the registered "
            "champion with the most bands that the sources support."
        ),
    ] = "auto",
) -> None:
    """Map landslides directly from optical, DTM and SAR files.

    Needs no project. Builds the stack that the model expects (stack.tif, which can be opened in QGIS), maps it, and
    writes the same files as talud predict into one folder. After an interruption, the same command resumes: a complete
    stack of the same sources and options is reused, and finished tiles are not computed again.

    **Examples**

        talud map --optical image.tif --dtm dtm.tif --sar-pre before.tif --sar-post after.tif --cloud clouds.gpkg
        --event 2015-05-18 --out maps/liboriana

        talud map --model models/5band.onnx --optical image.tif --dtm dtm.tif --out maps/liboriana
    """
    files = given.files
    if not files.keys() - {"cloud", "sar_mask"}:
        raise typer.BadParameter("no source given; give at least one of --optical, --dtm, --sar-pre and --sar-post")
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
        print(f"resumed with {result.taken_over:,} of {counted(result.tiles, 'tile')}, finished by an interrupted run")
    print(f"{counted(result.landslides, 'landslide')}, {result.landslide_area_m2 / 10_000:,.1f} ha, in {result.raster}")
    if result.left_out:
        print(f"excluded: {result.left_out:,} smaller than {result.minimum_area_m2:g} m²")
    print(f"not mapped: {result.share_not_mapped:.1%} of the raster")
    for reason, pixels in result.not_mapped.items():
        print(f"  {reason}: {pixels / result.pixels:.1%}")
    for line in map_record.reduced_lines(result, model.contract):
        print(line)
    shares = result.landslide_share, model.contract.training_share
    for line in domain.report_lines(result.distances, result.pixel_size, shares):
        print(line)
    if domain.overall_verdict(result.distances) in domain.UNLIKE_VERDICTS and not model.contract.derived.adapted:
        print(f"  adapting the model to this raster may improve the map: {_adapt_command(model, raster)}")
        print("  adaptation needs no labels but can multiply false alarms: compare both maps with the image")
    print(f"model: {model.title}; provider: {result.provider}")
    for what, how in map_record.unusual_settings(model, result).items():
        print(f"{what.lower()}: {how}")
    for notice in map_record.notices(model, result):
        print(f"warning: {notice[:1].lower()}{notice[1:]}")
    if advice := map_record.advice(model, result):
        print(f"  {advice[:1].lower()}{advice[1:]}")
    print(f"files: {out}")
    print(result.estimate.sentence if result.estimate else f"no estimate of the landslide area: {result.no_estimate}")


def _adapt_command(model: Model, raster: str | Path) -> str:
    """Return the command that adapts a model."""
    command = ["talud", "adapt"]
    if model.registered_as:
        command += [f"{model.name}/{model.version}", str(raster)]
    else:
        adapted = model.path.with_name(f"{model.path.stem}.{Path(str(raster)).stem}.onnx")
        command += [str(model.path), str(raster), "--out", str(adapted)]
    return shlex.join(command)
