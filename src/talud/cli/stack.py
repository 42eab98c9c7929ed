"""`talud stack`: bring the sources of an area onto one grid."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from talud.cli.app import app
from talud.cli.progress import shown

if TYPE_CHECKING:
    from talud.data.record import Record
    from talud.params import Source

_PANEL = "The sources, with --like"


def _numbers(text: str) -> dict[str, int]:
    try:
        return {name.strip(): int(number) for name, number in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise typer.BadParameter("expected NAME=NUMBER, with commas between: red=3,green=2,blue=1") from error


def _option(text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel=_PANEL)


def _date(text: str) -> Any:
    return typer.Option(help=text, metavar="YYYY-MM-DD", formats=["%Y-%m-%d"], rich_help_panel=_PANEL)


def _bands(text: str) -> Any:
    return typer.Option(help=text, metavar="NAME=NUMBER,…", parser=_numbers, rich_help_panel=_PANEL)


@app.command("stack")
def stack(
    areas: Annotated[list[str] | None, typer.Argument(help="Areas of params.yaml.", show_default=False)] = None,
    like: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Make the stack that this .onnx file or MLflow model asks for.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="STACK", help="With --like: the stack to write.")] = None,
    optical: Annotated[Path | None, _option("Optical image.")] = None,
    dtm: Annotated[Path | None, _option("Digital terrain model; slope and curvature come from it.")] = None,
    sar_pre: Annotated[Path | None, _option("SAR scene before the event.")] = None,
    sar_post: Annotated[Path | None, _option("SAR scene after the event.")] = None,
    cloud: Annotated[Path | None, _option("Clouds, as non-zero pixels or polygons.")] = None,
    sar_mask: Annotated[Path | None, _option("Radar layover and shadow, as non-zero pixels or polygons.")] = None,
    sar_unit: Annotated[
        Literal["amplitude", "power", "db"] | None, _option("Unit of the SAR scenes, where their tags do not say it.")
    ] = None,
    optical_bands: Annotated[
        Any, _bands("Bands of the image, where it does not name them: red=3,green=2,blue=1")
    ] = None,
    sar_bands: Annotated[Any, _bands("Bands of the SAR scenes, where VV is not the first: vv=2,vh=1")] = None,
    event: Annotated[datetime | None, _date("When the landslides happened.")] = None,
    optical_date: Annotated[datetime | None, _date("When the image was taken.")] = None,
    sar_pre_date: Annotated[datetime | None, _date("When the scene before the event was taken.")] = None,
    sar_post_date: Annotated[datetime | None, _date("When the scene after the event was taken.")] = None,
) -> None:
    """Bring sources onto one grid: areas of the project, or, away from any project, what a model asks for.

    In a project: writes stacks/AREA.tif (bands by name, NaN = invalid), stacks/AREA.mask.tif (the inventory: 1
    landslide, 0 not, 255 unknown) and the record of both. With --like: writes the one stack, with the bands,
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
    if like:
        if areas or out is None:
            raise typer.BadParameter("with --like give sources and --out, and no areas", param_hint="--like")
        _like(like, out, files, optical_bands, sar_bands, sar_unit, event, dates)
    elif any((out, *files.values(), optical_bands, sar_bands, sar_unit, event, *dates.values())):
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


def _said(record: Record) -> str:
    """A record on one line."""
    parts = [f"{len(record.bands)} bands ({', '.join(record.bands)}), {record.height} × {record.width} pixels"]
    if record.polygons is None:
        parts.append("no inventory, so its mask is unknown everywhere")
    else:
        parts.append(f"{record.polygons:,} polygons, {record.landslide_pixels:,} landslide pixels")
    if record.repaired_polygons:
        parts.append(f"{record.repaired_polygons} invalid polygon(s) repaired")
    if record.skipped_polygons:
        parts.append(f"{record.skipped_polygons} feature(s) without a polygon skipped")
    return "; ".join(parts)


def _like(
    model: str,
    out: Path,
    files: dict[Source, Path | None],
    optical_bands: dict[str, int] | None,
    sar_bands: dict[str, int] | None,
    sar_unit: str | None,
    event: datetime | None,
    dates: dict[str, datetime | None],
) -> None:
    import talud
    from talud.data.stack import build_like
    from talud.params import Area

    said = {
        "optical_bands": optical_bands,
        "sar_bands": sar_bands,
        "sar_unit": sar_unit,
        "event": event and event.date(),
        "acquired": {name: day.date() for name, day in dates.items() if day},
    }
    area = Area.given(role="transfer", folder=".", **{key: value for key, value in said.items() if value})
    contract = talud.load_model(model).contract
    given = {name: path for name, path in files.items() if path}
    with shown("stack", "windows") as progress:
        grid = build_like(contract, area, given, out, progress)
    print(f"{out}: {', '.join(contract.band_names)}; {grid.height} × {grid.width} pixels of {grid.resolution:g} m")
