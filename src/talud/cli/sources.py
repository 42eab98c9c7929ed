"""The options with which commands take loose sources, declared once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from talud.cli.app import with_options

if TYPE_CHECKING:
    from talud.params import Area, Source

_PANEL = "The sources"
_FILES: tuple[Source, ...] = ("optical", "dtm", "sar_pre", "sar_post", "cloud", "sar_mask")
_DATED = ("optical", "sar_pre", "sar_post")


def parse_band_numbers(text: str) -> dict[str, int]:
    """Return the numbers of an option by band name."""
    try:
        return {name.strip(): int(number) for name, number in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise typer.BadParameter("expected NAME=NUMBER, with commas between: red=3,green=2,blue=1") from error


def _option(text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel=_PANEL)


def _date(text: str) -> Any:
    return typer.Option(help=text, metavar="YYYY-MM-DD", formats=["%Y-%m-%d"], rich_help_panel=_PANEL)


def _bands(text: str) -> Any:
    return typer.Option(help=text, metavar="NAME=NUMBER,…", parser=parse_band_numbers, rich_help_panel=_PANEL)


_SOURCE_OPTIONS: dict[str, Any] = {
    "optical": Annotated[Path | None, _option("Optical image.")],
    "dtm": Annotated[Path | None, _option("Digital terrain model; slope and curvature come from it.")],
    "sar_pre": Annotated[Path | None, _option("SAR scene before the event.")],
    "sar_post": Annotated[Path | None, _option("SAR scene after the event.")],
    "cloud": Annotated[Path | None, _option("Clouds, as non-zero pixels or polygons.")],
    "sar_mask": Annotated[Path | None, _option("Radar layover and shadow, as non-zero pixels or polygons.")],
    "sar_unit": Annotated[
        Literal["amplitude", "power", "db"] | None, _option("Unit of the SAR scenes, where their tags do not say it.")
    ],
    "optical_bands": Annotated[Any, _bands("Bands of the image, where it does not name them: red=3,green=2,blue=1")],
    "optical_scale": Annotated[
        float | None,
        _option(
            "Reflectance for a step of the image's numbers, where it states none: 0.0001 for Sentinel-2 L2A.", "NUMBER"
        ),
    ],
    "optical_offset": Annotated[
        float | None,
        _option(
            "Added after the scale, where the image states none: -0.1 for Sentinel-2 L2A since January 2022.", "NUMBER"
        ),
    ],
    "sar_bands": Annotated[Any, _bands("Bands of the SAR scenes, where VV is not the first: vv=2,vh=1")],
    "event": Annotated[datetime | None, _date("When the landslides happened.")],
    "optical_date": Annotated[datetime | None, _date("When the image was taken.")],
    "sar_pre_date": Annotated[datetime | None, _date("When the scene before the event was taken.")],
    "sar_post_date": Annotated[datetime | None, _date("When the scene after the event was taken.")],
}


@dataclass(frozen=True)
class Sources:
    """The sources that the options of a command name.

    Attributes:
        given: the values of the options that are given, by name.
    """

    given: Mapping[str, Any]

    @property
    def files(self) -> dict[Source, Path]:
        """The files by source."""
        return {name: self.given[name] for name in _FILES if name in self.given}

    def area(self) -> Area:
        """Return an area outside of any project.

        Raises:
            ParamsError: the options do not fit each other.
        """
        from talud.params import Area

        names = ("optical_bands", "sar_bands", "sar_unit", "optical_scale", "optical_offset")
        settings = {name: self.given[name] for name in names if name in self.given}
        if "event" in self.given:
            settings["event"] = self.given["event"].date()
        dates = {name: self.given[f"{name}_date"].date() for name in _DATED if f"{name}_date" in self.given}
        if dates:
            settings["acquired"] = dates
        return Area.create(role="transfer", folder=".", **settings)


def _sources(options: dict[str, Any]) -> Sources:
    return Sources({name: value for name, value in options.items() if value is not None})


# Gives a command the options of sources; its parameter `given` is made of them.
with_sources = with_options("given", {name: (kind, None) for name, kind in _SOURCE_OPTIONS.items()}, _sources)


def print_bands(stack: Path) -> None:
    """Print the bands that a stack took from each of its sources, with the evidence."""
    from talud.data.stack import bands_taken

    for source, words in bands_taken(stack).items():
        print(f"bands of {source}: {words}")
