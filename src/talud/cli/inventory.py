"""`talud inventory`: correct the inventory of an area."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talud.cli.app import app

if TYPE_CHECKING:
    from talud.data.revision import Revision, Tally
    from talud.project import Project

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
    print(f"{area}: {_said(result.before)} before, {_said(result.after)} now")
    for name in ("added", "removed", "changed", "unchanged"):
        tally: Tally = getattr(result, name)
        print(f"  {name}: {_said(tally, signed=name == 'changed')}")
    if not result.written:
        print(f"nothing changed; {_place(project, result.path)} is as it was")
        return
    print(f"written: {_place(project, result.path)}")
    print("next, so that the new data are on record before a model is trained on them:")
    for command in _next(project, result, area):
        print(f"  {command}")


def _said(tally: Tally, *, signed: bool = False) -> str:
    hectares = tally.area / 10_000
    return f"{tally.polygons:,} polygon{'' if tally.polygons == 1 else 's'}, {hectares:{'+' if signed else ''},.2f} ha"


def _place(project: Project, path: Path) -> Path:
    return path.relative_to(project.root) if path.is_relative_to(project.root) else path


def _next(project: Project, result: Revision, area: str) -> list[str]:
    """What puts the change on record, and to use: for DVC what it tracks already, else the area's folder."""
    place = _place(project, result.path)
    candidates = [place, *place.parents][:-1]
    tracked = next((one for one in candidates if (project.root / f"{one}.dvc").is_file()), place.parent)
    return [
        f"dvc add {tracked}",
        f"git commit --message 'The inventory of {area} is corrected' {tracked}.dvc",
        "dvc repro",
    ]
