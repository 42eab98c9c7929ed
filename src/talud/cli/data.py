"""Commands for data: stacks and inventories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talud.cli import sources
from talud.cli.app import app
from talud.cli.progress import show_progress
from talud.text import counted, dimensions

if TYPE_CHECKING:
    from talud.data.record import Record
    from talud.data.revision import Revision, Tally
    from talud.params import Area, Source
    from talud.project import Project


@app.command("stack")
@sources.with_sources
def stack(
    given: sources.Sources,
    areas: Annotated[list[str] | None, typer.Argument(help="Areas of params.yaml.", show_default=False)] = None,
    like: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Make the stack that this .onnx file or MLflow model asks for.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="STACK", help="With --like: the stack to write.")] = None,
) -> None:
    """Bring sources onto one grid: areas of the project, or, away from any project, what a model asks for.

    In a project: writes stacks/AREA.tif (bands by name, NaN = invalid), stacks/AREA.mask.tif (the inventory: 1
    landslide, 0 not, 255 unknown) and the record of both. Patches that params.yaml names in place of rasters lie side
    by side there. With --like: writes the one stack, with the bands,
    resolution and methods of the model.

    **Examples**

        talud stack synthetic_argelia

        talud stack --optical image.tif --dtm dtm.tif --like models/5band.onnx --out stack.tif

        talud stack --optical image.tif --dtm dtm.tif --sar-pre before.tif --sar-post after.tif --sar-unit amplitude
        --event 2015-05-18 --like models:/landslide-unet-7band@champion --out stack.tif
    """
    if like:
        if areas or out is None:
            raise typer.BadParameter("with --like give sources and --out, and no areas", param_hint="--like")
        _build_for_model(like, out, given.files, given.area())
    elif out or given.given:
        raise typer.BadParameter("params.yaml names the sources of areas; options go with --like", param_hint="AREAS")
    elif areas:
        _build_areas(areas)
    else:
        raise typer.BadParameter("give the areas, or --like MODEL with sources and --out", param_hint="AREAS")


def _build_areas(areas: list[str]) -> None:
    from talud.data.stack import build
    from talud.project import Project

    project = Project.find()
    for area in areas:
        with show_progress(f"stack {area}", "windows") as progress:
            record = build(project, area, progress)
        print(f"{area}: {project.stack(area).relative_to(project.root)}, {_record_line(record)}")
        sources.print_bands(project.stack(area))


def _record_line(record: Record) -> str:
    """Return the record of a stack on one line."""
    parts = [
        f"{counted(len(record.bands), 'band')} ({', '.join(record.bands)}), {dimensions(record.width, record.height)}"
    ]
    if record.patches is not None:
        parts.append(_patches_text(record))
    elif record.polygons is None:
        parts.append("no inventory, so its mask is unknown everywhere")
    else:
        parts.append(
            f"{counted(record.polygons, 'polygon')}, {counted(record.landslide_pixels or 0, 'landslide pixel')}"
        )
    if record.repaired_polygons:
        parts.append(f"{counted(record.repaired_polygons, 'invalid polygon')} repaired")
    if record.skipped_polygons:
        parts.append(f"{counted(record.skipped_polygons, 'feature')} without a polygon skipped")
    return "; ".join(parts)


def _patches_text(record: Record) -> str:
    number, unknown = len(record.patches or ()), record.unlabelled_patches or 0
    if record.landslide_pixels is None:
        return f"{counted(number, 'patch', 'patches')} without a mask, so that it is unknown everywhere"
    without = f", {unknown:,} of them without a mask" if unknown else ""
    return f"{counted(number, 'patch', 'patches')}{without}; {counted(record.landslide_pixels, 'landslide pixel')}"


def _build_for_model(model: str, out: Path, files: dict[Source, Path], area: Area) -> None:
    import talud
    from talud import source_files
    from talud.data.stack import build_like

    loaded = talud.load_model(model)
    source_files.check_output_file(out, [*files.values(), loaded.path])
    contract = loaded.contract
    with show_progress("stack", "windows") as progress:
        grid = build_like(contract, area, files, out, progress)
    print(
        f"{out}: {', '.join(contract.input.band_names)}; {dimensions(grid.width, grid.height)} of {grid.resolution:g} m"
    )
    sources.print_bands(out)


inventory = typer.Typer(name="inventory", no_args_is_help=True, help="Correct the inventory of an area.")
app.add_typer(inventory)


@inventory.command("import")
def import_(
    edits: Annotated[
        Path,
        typer.Argument(
            metavar="EDITS", help="all landslides of the area, corrected: a GeoPackage, Shapefile or GeoJSON"
        ),
    ],
    area: Annotated[str, typer.Option(help="an area of params.yaml")],
) -> None:
    """Put a corrected inventory in the place of an area's own, and show what changed.

    EDITS holds all landslides of the area: what is missing there is removed. Its polygons are checked, mended where
    that leaves their area as it is, and brought to the inventory's CRS; the inventory keeps its name, format and layer,
    and what it holds outside the area. Attributes of EDITS, such as who corrected a landslide and when, are kept.

    After an error, or where nothing has changed, the inventory is as it was.

    **Examples**

        talud inventory import corrected.gpkg --area synthetic_argelia
    """
    from talud.data.revision import revise
    from talud.project import Project

    project = Project.find()
    result = revise(project, area, edits)
    if result.mended:
        print(f"mended: {len(result.mended)} (features {', '.join(map(str, result.mended))})")
    for column, name in result.renamed.items():
        print(f"column '{column}' is kept as '{name}'")
    if result.outside:
        print(f"left aside: {result.outside} outside the grid of {area}")
    if result.filtered:
        print(f"left aside: {result.filtered} that the area's inventory_filter leaves out")
    print(f"{area}: {_tally_text(result.before)} before, {_tally_text(result.after)} now")
    for name in ("added", "removed", "changed", "unchanged"):
        tally: Tally = getattr(result, name)
        print(f"  {name}: {_tally_text(tally, signed=name == 'changed')}")
    if not result.written:
        print(f"nothing changed; {_relative_path(project, result.path)} is as it was")
        return
    print(f"written: {_relative_path(project, result.path)}")
    print("next, so that the new data are on record before a model is trained on them:")
    for command in _follow_up_commands(project, result, area):
        print(f"  {command}")


def _tally_text(tally: Tally, *, signed: bool = False) -> str:
    hectares = tally.area / 10_000
    return f"{tally.polygons:,} polygon{'' if tally.polygons == 1 else 's'}, {hectares:{'+' if signed else ''},.2f} ha"


def _relative_path(project: Project, path: Path) -> Path:
    return path.relative_to(project.root) if path.is_relative_to(project.root) else path


def _follow_up_commands(project: Project, result: Revision, area: str) -> list[str]:
    """Return the commands that record and use a change.

    DVC gets what it tracks already, else the folder of the area.
    """
    place = _relative_path(project, result.path)
    candidates = [place, *place.parents][:-1]
    tracked = next((one for one in candidates if (project.root / f"{one}.dvc").is_file()), place.parent)
    return [
        f"dvc add {tracked}",
        f"git commit --message 'The inventory of {area} is corrected' {tracked}.dvc",
        "dvc repro",
    ]
