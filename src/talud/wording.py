"""Numbers of things, sizes and durations in words, the same wherever a person reads them."""

from __future__ import annotations


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number and the noun that it counts: "1 landslide", "2 landslides", "1,234 pixels"."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def dimensions(width: int, height: int) -> str:
    """Return the size of a raster, width first as in GDAL and image tools: "457 columns × 219 rows"."""
    return f"{counted(width, 'column')} × {counted(height, 'row')}"


def duration(seconds: float) -> str:
    """Return a duration in the unit that suits it: "48 seconds", "1 minute", "2.5 hours"."""
    if seconds < 59.5:
        return counted(round(seconds), "second") if seconds >= 0.5 else "less than a second"
    if seconds < 59.5 * 60:
        return counted(round(seconds / 60), "minute")
    hours = round(seconds / 3600, 1)
    return "1 hour" if hours == 1 else f"{hours:,.1f} hours"
