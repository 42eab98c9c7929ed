"""Small projects with stacks of noise, and models of random weights to register."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import yaml
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from talud.engine.runtime import Model
from talud.grid import Grid
from talud.measurement.features import FeatureStatistics
from talud.project import Project
from talud.raster import Layout, write_cog
from talud.training import export

EVERYTHING, SOMETHING, NOTHING = 0.001, 0.5, 0.999  # thresholds: what the model of random weights calls landslide
HALF = 0.4  # of the pixels, by and large
PARAMS = {
    "seed": 7,
    "areas": {"basin": {"role": "training", "folder": "data/basin"}},
    "stack": {},
    # Of the 16 blocks of a small area, six are for validation: as many as decide between two models.
    "split": {"block": 32, "patch": 16, "stride": 16, "validation": 0.4},
    "training": {"depth": 2},
    "search": "demo",
    "searches": {"demo": {"filters": [4], "learning_rate": [0.001], "batch_size": [8], "epochs": 1}},
}
PARITY = {"difference": 2e-7, "allowed": 1e-5}


def pixels(height: int, width: int) -> NDArray[np.float32]:
    """Return the noise of every stack: float32 (3, height, width)."""
    return np.random.default_rng(5).uniform(0, 250, (3, height, width)).astype(np.float32)


def write_area(project: Project, area: str, landslide: NDArray[np.bool_]) -> None:
    """Write an area's stack of noise, mask and record."""
    height, width = landslide.shape
    grid = Grid(CRS.from_epsg(32618), Affine(12.5, 0, 400_000, 0, -12.5, 650_000), height, width)
    bands = Layout("float32", float("nan"), ["red", "green", "blue"], ["DN"] * 3)
    with write_cog(project.stack(area), grid, bands) as writer:
        writer.write(pixels(height, width))
    with write_cog(project.mask(area), grid, Layout("uint8", 255, ["landslide"])) as writer:
        writer.write(landslide.astype(np.uint8), 1)


def write_params(root: Path, promotion: dict[str, object] | None = None, **areas: object) -> Project:
    """Write a project with a unique band set, so that tests can share a store."""
    band_sets = {root.name: ["red", "green", "blue"]}
    params = PARAMS | {"areas": PARAMS["areas"] | areas, "band_sets": band_sets, "promotion": promotion or {}}
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return Project.find(root)


def write_model(
    project: Project, tiny_model: Path, threshold: float, features: FeatureStatistics | None = None, **changes: object
) -> Path:
    """Write a model with a given contract where training would write it."""
    band_set = next(iter(project.params.band_sets))
    contract = Model.load(tiny_model).contract
    histogram = {"edges": (0.0, 125.0, 250.0), "shares": (0.5, 0.5)}
    bands = [band.model_dump() | histogram for band in contract.input.bands]
    complete = {"bands": bands, "name": band_set, "threshold": threshold, "commit": "c0ffee", "parity": PARITY}
    path = project.model(band_set)
    path.parent.mkdir(exist_ok=True)
    export.save_model(
        onnx.load(tiny_model),
        contract.replace(**complete | changes),
        path,
        features.to_metadata() if features else None,
    )
    return path
