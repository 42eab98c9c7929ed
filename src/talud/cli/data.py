"""Commands that prepare data: stacks and inventories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talud.cli import sources
from talud.cli.app import DATA, app
from talud.cli.progress import show_progress
from talud.text import counted, dimensions

if TYPE_CHECKING:
    from talud.data.inventory_revision import PolygonTotals, Revision
    from talud.data.stack_record import StackRecord
    from talud.params import Area, Source
    from talud.project import Project


@app.command("stack", rich_help_panel=DATA)
@sources.with_sources
def stack(
    given: sources.Sources,
    areas: Annotated[
        list[str] | None, typer.Argument(metavar="AREA", help="Areas of params.yaml to prepare.", show_default=False)
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Build the stack that this model needs, outside any project: an .onnx file or an MLflow URI.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="STACK", help="Path of the stack, with --like.")] = None,
) -> None:
    """Align optical, DTM and SAR rasters in one multi-band GeoTIFF.

    In a project: writes stacks/AREA.tif (named bands, NaN where invalid), stacks/AREA.mask.tif (the rasterised
    inventory: 1 landslide, 0 background, 255 unknown) and a record of the sources. For an area that consists of
    patches, the patches are placed next to each other in one raster.

    With `--like`, outside any project: writes one stack with the bands, the resolution and the methods that the model
    expects.

    **Examples**

        talud stack synthetic_argelia

        talud stack --optical image.tif --dtm dtm.tif --like models/5band.onnx --out stack.tif

        talud stack --optical image.tif --dtm dtm.tif --sar-pre before.tif --sar-post after.tif --sar-unit amplitude
        --event 2015-05-18 --like models:/landslide-unet-7band@champion --out stack.tif
    """
    if like:
        if areas or out is None:
            raise typer.BadParameter("--like needs sources and --out, and takes no areas", param_hint="--like")
        _build_for_model(like, out, given.files, given.area())
    elif out or given.given:
        raise typer.BadParameter(
            "options of sources need --like; the sources of an area are listed in params.yaml", param_hint="AREA"
        )
    elif areas:
        _build_areas(areas)
    else:
        raise typer.BadParameter(
            "no area given; name areas of params.yaml, or give --like MODEL with sources and --out", param_hint="AREA"
        )


def _build_areas(areas: list[str]) -> None:
    from talud.data.stack import build_stack
    from talud.data.stack_record import describe_resampling
    from talud.project import Project

    project = Project.find()
    for area in areas:
        with show_progress(f"stack {area}", "windows") as progress:
            record = build_stack(project, area, progress)
        print(f"{area}: {project.stack(area).relative_to(project.root)}, {_record_line(record)}")
        sources.print_bands(project.stack(area))
        if sentence := describe_resampling(project.stack(area)):
            print(sentence)


def _record_line(record: StackRecord) -> str:
    """Return a one-line summary of a stack."""
    parts = [
        f"{counted(len(record.bands), 'band')} ({', '.join(record.bands)}), {dimensions(record.width, record.height)}"
    ]
    if record.patches is not None:
        parts.append(_patches_text(record))
    elif record.polygons is None:
        parts.append("no inventory, so the whole mask is unknown")
    else:
        parts.append(
            f"{counted(record.polygons, 'polygon')}, {counted(record.landslide_pixels or 0, 'landslide pixel')}"
        )
    if record.repaired_polygons:
        parts.append(f"{counted(record.repaired_polygons, 'invalid polygon')} repaired")
    if record.skipped_polygons:
        parts.append(f"{counted(record.skipped_polygons, 'feature')} without a polygon skipped")
    return "; ".join(parts)


def _patches_text(record: StackRecord) -> str:
    number, unknown = len(record.patches or ()), record.unlabelled_patches or 0
    patches = counted(number, "patch", "patches")
    if record.landslide_pixels is None:
        return f"{patches} without a mask, so the whole mask is unknown"
    without = f", {unknown:,} of them without a mask" if unknown else ""
    return f"{patches}{without}; {counted(record.landslide_pixels, 'landslide pixel')}"


def _build_for_model(model: str, out: Path, files: dict[Source, Path], area: Area) -> None:
    import talud
    from talud import source_files
    from talud.data.stack import build_stack_for_model

    loaded = talud.load_model(model)
    source_files.check_output_file(out, [*files.values(), loaded.path])
    contract = loaded.contract
    with show_progress("stack", "windows") as progress:
        grid = build_stack_for_model(contract, area, files, out, progress)
    print(
        f"{out}: {', '.join(contract.input.band_names)}; {dimensions(grid.width, grid.height)} of {grid.resolution:g} m"
    )
    sources.print_bands(out)


inventory = typer.Typer(name="inventory", no_args_is_help=True, help="Import a corrected landslide inventory.")
app.add_typer(inventory, rich_help_panel=DATA)


@inventory.command("import")
def import_(
    edits: Annotated[
        Path,
        typer.Argument(
            metavar="EDITS",
            help="Corrected inventory with all landslides of the area: a GeoPackage, Shapefile or GeoJSON.",
        ),
    ],
    area: Annotated[str, typer.Option(help="Area of params.yaml.")],
) -> None:
    """Import a corrected landslide inventory, and list the changes.

    EDITS must hold all landslides of the area: polygons that are missing there are removed from the inventory. Its
    polygons are checked, repaired if that does not change their area, and reprojected to the CRS of the inventory. The
    inventory keeps its file name, format, layer and the polygons outside the area. Attributes of EDITS, such as editor
    and date, are kept.

    After an error, or if nothing changed, the inventory is left as it was.

    **Examples**

        talud inventory import corrected.gpkg --area synthetic_argelia
    """
    from talud.data.inventory_revision import revise_inventory
    from talud.project import Project

    project = Project.find()
    result = revise_inventory(project, area, edits)
    if result.repaired:
        print(f"repaired: {len(result.repaired)} (features {', '.join(map(str, result.repaired))})")
    for column, name in result.renamed.items():
        print(f"column '{column}' is renamed to '{name}'")
    if result.outside:
        print(f"ignored: {result.outside} outside the grid of {area}")
    if result.filtered:
        print(f"ignored: {result.filtered} excluded by inventory_filter of the area")
    print(f"{area}: {_tally_text(result.before)} before, {_tally_text(result.after)} after")
    for name in ("added", "removed", "changed", "unchanged"):
        tally: PolygonTotals = getattr(result, name)
        print(f"  {name}: {_tally_text(tally, signed=name == 'changed')}")
    if not result.written:
        print(f"no changes; {_relative_path(project, result.path)} was not written")
        return
    print(f"written: {_relative_path(project, result.path)}")
    print("next steps, to version the new inventory before a model is trained with it:")
    for command in _follow_up_commands(project, result, area):
        print(f"  {command}")


def _tally_text(tally: PolygonTotals, *, signed: bool = False) -> str:
    hectares = tally.area / 10_000
    return f"{tally.polygons:,} polygon{'' if tally.polygons == 1 else 's'}, {hectares:{'+' if signed else ''},.2f} ha"


def _relative_path(project: Project, path: Path) -> Path:
    return path.relative_to(project.root) if path.is_relative_to(project.root) else path


def _follow_up_commands(project: Project, result: Revision, area: str) -> list[str]:
    """Return commands that version an inventory and repeat the pipeline.

    `dvc add` gets the path that DVC tracks already, or else the folder of the area.
    """
    location = _relative_path(project, result.path)
    candidates = [location, *location.parents][:-1]
    tracked = next((one for one in candidates if (project.root / f"{one}.dvc").is_file()), location.parent)
    return [
        f"dvc add {tracked}",
        f"git commit --message 'Correct the inventory of {area}' {tracked}.dvc",
        "dvc repro",
    ]
