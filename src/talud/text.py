"""Text for users: counts, durations, times, errors and HTML pages."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Format a number with its noun: "1 landslide", "1,234 pixels"."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def dimensions(width: int, height: int) -> str:
    """Format a raster's size: "457 columns × 219 rows".

    The width comes first, as in GDAL and image tools.
    """
    return f"{counted(width, 'column')} × {counted(height, 'row')}"


def duration(seconds: float) -> str:
    """Format a duration, such as "48 seconds"."""
    if seconds < 59.5:
        return counted(round(seconds), "second") if seconds >= 0.5 else "less than a second"
    if seconds < 59.5 * 60:
        return counted(round(seconds / 60), "minute")
    hours = round(seconds / 3600, 1)
    return "1 hour" if hours == 1 else f"{hours:,.1f} hours"


def utc_text(moment: datetime) -> str:
    """Format a time in UTC as RFC 3339: "2026-11-24T13:20:05Z"."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def first_line(error: BaseException) -> str:
    """Return an error's first line, or its type."""
    return next((line.strip() for line in str(error).strip().splitlines()), type(error).__name__)


def html_environment(package: str, **filters: Callable[..., object]) -> jinja2.Environment:
    """Create a Jinja environment for a package's HTML templates.

    Values are escaped, and an undefined name is an error. Templates of `talud` itself, such as `head.html`, can be
    included.

    Args:
        package: package with a folder `templates`.
        filters: functions that format values in the templates, by name.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("talud")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment
