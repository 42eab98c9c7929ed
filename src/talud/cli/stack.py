"""`talud stack`: bring the sources of an area onto one grid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talud.cli import sources
from talud.cli.app import app
from talud.cli.progress import shown
from talud.text import counted, dimensions

if TYPE_CHECKING:
    from talud.data.record import Record
    from talud.params import Area, Source


@app.command("stack")
def stack(
    areas: Annotated[list[str] | None, typer.Argument(help="Areas of params.yaml.", show_default=False)] = None,
    like: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Make the stack that this .onnx file or MLflow model asks for.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="STACK", help="With --like: the stack to write.")] = None,
    optical: sources.Optical = None,
    dtm: sources.Dtm = None,
    sar_pre: sources.SarPre = None,
    sar_post: sources.SarPost = None,
    cloud: sources.Cloud = None,
    sar_mask: sources.SarMask = None,
    sar_unit: sources.SarUnit = None,
    optical_bands: sources.OpticalBands = None,
    optical_scale: sources.OpticalScale = None,
    optical_offset: sources.OpticalOffset = None,
    sar_bands: sources.SarBands = None,
    event: sources.Event = None,
    optical_date: sources.OpticalDate = None,
    sar_pre_date: sources.SarPreDate = None,
    sar_post_date: sources.SarPostDate = None,
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
    files: dict[Source, Path | None] = {
        "optical": optical, "dtm": dtm, "sar_pre": sar_pre, "sar_post": sar_post, "cloud": cloud, "sar_mask": sar_mask,
    }  # fmt: skip
    dates = {"optical": optical_date, "sar_pre": sar_pre_date, "sar_post": sar_post_date}
    scaling = [number is not None for number in (optical_scale, optical_offset)]
    if like:
        if areas or out is None:
            raise typer.BadParameter("with --like give sources and --out, and no areas", param_hint="--like")
        given = {name: path for name, path in files.items() if path}
        area = sources.area(optical_bands, sar_bands, sar_unit, event, dates, optical_scale, optical_offset)
        _like(like, out, given, area)
    elif any((out, *files.values(), optical_bands, sar_bands, sar_unit, event, *dates.values(), *scaling)):
        raise typer.BadParameter("params.yaml names the sources of areas; options go with --like", param_hint="AREAS")
    elif areas:
        _areas(areas)
    else:
        raise typer.BadParameter("give the areas, or --like MODEL with sources and --out", param_hint="AREAS")


def _areas(areas: list[str]) -> None:
    from talud.data.stack import build
    from talud.project import Project

    project = Project.find()
    for area in areas:
        with shown(f"stack {area}", "windows") as progress:
            record = build(project, area, progress)
        print(f"{area}: {project.stack(area).relative_to(project.root)}, {_said(record)}")
        sources.say_bands(project.stack(area))


def _said(record: Record) -> str:
    """A record on one line."""
    parts = [
        f"{counted(len(record.bands), 'band')} ({', '.join(record.bands)}), {dimensions(record.width, record.height)}"
    ]
    if record.patches is not None:
        parts.append(_said_of_patches(record))
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


def _said_of_patches(record: Record) -> str:
    number, unknown = len(record.patches or ()), record.unlabelled_patches or 0
    if record.landslide_pixels is None:
        return f"{counted(number, 'patch', 'patches')} without a mask, so that it is unknown everywhere"
    without = f", {unknown:,} of them without a mask" if unknown else ""
    return f"{counted(number, 'patch', 'patches')}{without}; {counted(record.landslide_pixels, 'landslide pixel')}"


def _like(model: str, out: Path, files: dict[Source, Path], area: Area) -> None:
    import talud
    from talud import outputs
    from talud.data.stack import build_like

    loaded = talud.load_model(model)
    outputs.check_file(out, [*files.values(), loaded.path])
    contract = loaded.contract
    with shown("stack", "windows") as progress:
        grid = build_like(contract, area, files, out, progress)
    print(
        f"{out}: {', '.join(contract.input.band_names)}; {dimensions(grid.width, grid.height)} of {grid.resolution:g} m"
    )
    sources.say_bands(out)
