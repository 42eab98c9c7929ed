"""Source files and small projects for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml
from affine import Affine

from talud.project import Project

UTM = "EPSG:32618"
CORNER = (400_000.0, 600_000.0)  # left, top


def write_raster(
    path: Path,
    values: Any,
    side: float = 12.5,
    corner: tuple[float, float] = CORNER,
    crs: str | None = UTM,
    *,
    units: tuple[str, ...] = (),
    descriptions: tuple[str, ...] = (),
    scale: float = 1,
    offset: float = 0,
    tags: dict[str, str] | None = None,
    **profile: Any,
) -> Path:
    """Write a north-up GeoTIFF of (height, width) or (bands, height, width) values."""
    bands = np.atleast_3d(np.asarray(values).T).T if np.ndim(values) == 2 else np.asarray(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = Affine(side, 0, corner[0], 0, -side, corner[1])
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(bands),
        height=bands.shape[1],
        width=bands.shape[2],
        dtype=bands.dtype,
        crs=crs,
        transform=transform,
        **profile,
    ) as writer:
        writer.write(bands)
        for index, unit in enumerate(units, start=1):
            writer.set_band_unit(index, unit)
        for index, text in enumerate(descriptions, start=1):
            writer.set_band_description(index, text)
        if (scale, offset) != (1, 0):
            writer.scales, writer.offsets = (scale,) * len(bands), (offset,) * len(bands)
        writer.update_tags(**(tags or {}))
    return path


def write_project(root: Path, areas: dict[str, dict[str, Any]], **changes: Any) -> Project:
    """Write a project; `changes` replace sections of params.yaml."""
    params = {
        "seed": 1,
        "areas": areas,
        "band_sets": {"rgb": ["red", "green", "blue"]},
        "stack": {"resolution": 12.5},
        "split": {},
        "training": {},
        "search": "one",
        "searches": {"one": {"filters": [4], "learning_rate": [0.001], "batch_size": [4], "epochs": 1}},
        **changes,
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return Project.find(root)
