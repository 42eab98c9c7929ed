"""Numbers of things, sizes and durations in words."""

from __future__ import annotations


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 landslide", "1,234 pixels"."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def dimensions(width: int, height: int) -> str:
    """Return the size of a raster, such as "457 columns × 219 rows".

    The width comes first, as in GDAL and image tools.
    """
    return f"{counted(width, 'column')} × {counted(height, 'row')}"


def duration(seconds: float) -> str:
    """Return a duration in a suitable unit, such as "48 seconds"."""
    if seconds < 59.5:
        return counted(round(seconds), "second") if seconds >= 0.5 else "less than a second"
    if seconds < 59.5 * 60:
        return counted(round(seconds / 60), "minute")
    hours = round(seconds / 3600, 1)
    return "1 hour" if hours == 1 else f"{hours:,.1f} hours"
