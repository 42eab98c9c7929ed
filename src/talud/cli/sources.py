"""Options of commands that take source files."""

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

_PANEL = "Sources"
_FILES: tuple[Source, ...] = ("optical", "dtm", "sar_pre", "sar_post", "cloud", "sar_mask")
_DATED = ("optical", "sar_pre", "sar_post")


def parse_band_numbers(text: str) -> dict[str, int]:
    """Parse NAME=NUMBER pairs into band numbers by name."""
    try:
        return {name.strip(): int(number) for name, number in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise typer.BadParameter(
            "expected NAME=NUMBER pairs separated by commas, such as red=3,green=2,blue=1"
        ) from error


def _option(text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel=_PANEL)


def _date(text: str) -> Any:
    return typer.Option(help=text, metavar="YYYY-MM-DD", formats=["%Y-%m-%d"], rich_help_panel=_PANEL)


def _bands(text: str) -> Any:
    return typer.Option(help=text, metavar="NAME=NUMBER,…", parser=parse_band_numbers, rich_help_panel=_PANEL)


_SOURCE_OPTIONS: dict[str, Any] = {
    "optical": Annotated[Path | None, _option("Optical image.")],
    "dtm": Annotated[Path | None, _option("Digital terrain model (DTM), from which slope and curvature are computed.")],
    "sar_pre": Annotated[Path | None, _option("SAR scene before the event.")],
    "sar_post": Annotated[Path | None, _option("SAR scene after the event.")],
    "cloud": Annotated[Path | None, _option("Cloud mask: raster with non-zero pixels under cloud, or polygons.")],
    "sar_mask": Annotated[
        Path | None, _option("Mask of radar layover and shadow: raster with non-zero pixels, or polygons.")
    ],
    "sar_unit": Annotated[
        Literal["amplitude", "power", "db"] | None, _option("Unit of the SAR scenes, if their tags do not state it.")
    ],
    "optical_bands": Annotated[
        Any, _bands("Band numbers of the image, if it has no band names: red=3,green=2,blue=1.")
    ],
    "optical_scale": Annotated[
        float | None,
        _option(
            "Scale from stored values to reflectance, if the image states none: 0.0001 for Sentinel-2 L2A.", "NUMBER"
        ),
    ],
    "optical_offset": Annotated[
        float | None,
        _option(
            "Offset added after scaling, if the image states none: -0.1 for Sentinel-2 L2A since January 2022.",
            "NUMBER",
        ),
    ],
    "sar_bands": Annotated[Any, _bands("Band numbers of the SAR scenes, if VV is not the first: vv=2,vh=1.")],
    "event": Annotated[datetime | None, _date("Date of the event that triggered the landslides.")],
    "optical_date": Annotated[datetime | None, _date("Acquisition date of the optical image.")],
    "sar_pre_date": Annotated[datetime | None, _date("Acquisition date of the SAR scene before the event.")],
    "sar_post_date": Annotated[datetime | None, _date("Acquisition date of the SAR scene after the event.")],
}


@dataclass(frozen=True)
class Sources:
    """Source files and settings from the command line.

    Attributes:
        given: values of the options that were given, by name.
    """

    given: Mapping[str, Any]

    @property
    def files(self) -> dict[Source, Path]:
        """Paths of the files, by source."""
        return {name: self.given[name] for name in _FILES if name in self.given}

    def area(self) -> Area:
        """Return an area outside any project.

        Raises:
            ParamsError: options contradict each other.
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


# Decorator that replaces the parameter `given` of a command by the options of sources.
with_sources = with_options("given", {name: (kind, None) for name, kind in _SOURCE_OPTIONS.items()}, _sources)


def print_bands(stack: Path) -> None:
    """Print how a stack identified the bands of its sources."""
    from talud.data.stack import read_band_evidence

    for source, words in read_band_evidence(stack).items():
        print(f"bands of {source}: {words}")
