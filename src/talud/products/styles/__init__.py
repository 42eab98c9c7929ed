"""The styles with which QGIS shows a map, as QML: of its rasters and of both layers."""

from __future__ import annotations

from importlib.resources import files


def qml(name: str) -> str:
    """The style of a raster or layer: `probability`, `classes`, `disagreement`, `landslides` or `not_mapped`."""
    return (files(__name__) / f"{name}.qml").read_text(encoding="utf-8")
