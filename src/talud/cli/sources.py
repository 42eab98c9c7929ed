"""The options with which commands take loose sources, declared once."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from talud.params import Area

_PANEL = "The sources"


def numbers(text: str) -> dict[str, int]:
    """Band name → number, as an option states them."""
    try:
        return {name.strip(): int(number) for name, number in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise typer.BadParameter("expected NAME=NUMBER, with commas between: red=3,green=2,blue=1") from error


def _option(text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel=_PANEL)


def _date(text: str) -> Any:
    return typer.Option(help=text, metavar="YYYY-MM-DD", formats=["%Y-%m-%d"], rich_help_panel=_PANEL)


def _bands(text: str) -> Any:
    return typer.Option(help=text, metavar="NAME=NUMBER,…", parser=numbers, rich_help_panel=_PANEL)


Optical = Annotated[Path | None, _option("Optical image.")]
Dtm = Annotated[Path | None, _option("Digital terrain model; slope and curvature come from it.")]
SarPre = Annotated[Path | None, _option("SAR scene before the event.")]
SarPost = Annotated[Path | None, _option("SAR scene after the event.")]
Cloud = Annotated[Path | None, _option("Clouds, as non-zero pixels or polygons.")]
SarMask = Annotated[Path | None, _option("Radar layover and shadow, as non-zero pixels or polygons.")]
SarUnit = Annotated[
    Literal["amplitude", "power", "db"] | None, _option("Unit of the SAR scenes, where their tags do not say it.")
]
OpticalBands = Annotated[Any, _bands("Bands of the image, where it does not name them: red=3,green=2,blue=1")]
OpticalScale = Annotated[
    float | None,
    _option(
        "Reflectance for a step of the image's numbers, where it states none: 0.0001 for Sentinel-2 L2A.", "NUMBER"
    ),
]
OpticalOffset = Annotated[
    float | None,
    _option(
        "Added after the scale, where the image states none: -0.1 for Sentinel-2 L2A since January 2022.", "NUMBER"
    ),
]
SarBands = Annotated[Any, _bands("Bands of the SAR scenes, where VV is not the first: vv=2,vh=1")]
Event = Annotated[datetime | None, _date("When the landslides happened.")]
OpticalDate = Annotated[datetime | None, _date("When the image was taken.")]
SarPreDate = Annotated[datetime | None, _date("When the scene before the event was taken.")]
SarPostDate = Annotated[datetime | None, _date("When the scene after the event was taken.")]


def area(
    optical_bands: dict[str, int] | None,
    sar_bands: dict[str, int] | None,
    sar_unit: str | None,
    event: datetime | None,
    dates: dict[str, datetime | None],
    optical_scale: float | None,
    optical_offset: float | None,
) -> Area:
    """What the options say of sources that lie in no project.

    Raises:
        ParamsError: it cannot be.
    """
    from talud.params import Area

    said = {
        "optical_bands": optical_bands,
        "sar_bands": sar_bands,
        "sar_unit": sar_unit,
        "optical_scale": optical_scale,
        "optical_offset": optical_offset,
        "event": event and event.date(),
        "acquired": {name: day.date() for name, day in dates.items() if day},
    }
    return Area.given(role="transfer", folder=".", **{key: value for key, value in said.items() if value or value == 0})


def say_bands(stack: Path) -> None:
    """Print the bands that a stack took from each of its sources, with the evidence."""
    from talud.data.stack import bands_taken

    for source, words in bands_taken(stack).items():
        print(f"bands of {source}: {words}")
