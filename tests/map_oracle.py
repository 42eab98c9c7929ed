"""Independent computation of a map, without talud's code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import rasterio
from numpy.typing import NDArray

PRODUCTS = {
    "probability.tif", "probability.qml", "landslides.tif", "landslides.qml", "landslides.gpkg", "quicklook.png",
    "summary.html", "prediction.json", "timings.json",
}  # fmt: skip


def check_map(folder: Path, model: Path, raster: str) -> None:
    """Assert that a map equals the output of the graph in one pass.

    The raster is read and the graph is run without talud.
    """
    assert {path.name for path in folder.iterdir()} == PRODUCTS
    session = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
    contract = json.loads(session.get_modelmeta().custom_metadata_map["talud.contract"])
    with rasterio.open(raster) as dataset:
        stack = np.stack([values_of(dataset, band) for band in contract["input"]["bands"]])
        place = dataset.crs, dataset.transform, dataset.shape
    expected = probability(session, stack, contract["input"]["alignment"])
    invalid = np.isnan(stack)
    # All bands are optical: without one, nothing is mapped, and where that group is not required, neither.
    blank = invalid.any(axis=0)
    with rasterio.open(folder / "probability.tif") as dataset:
        assert (dataset.crs, dataset.transform, dataset.shape) == place
        found = dataset.read(1)
    with rasterio.open(folder / "landslides.tif") as dataset:
        assert (dataset.crs, dataset.transform, dataset.shape) == place
        classes = dataset.read(1)
    assert np.array_equal(np.isnan(found), blank)
    assert np.allclose(found, np.where(blank, np.nan, expected), rtol=0, atol=1e-6, equal_nan=True)
    assert np.array_equal(classes, np.where(blank, 255, found >= contract["measured"]["threshold"]))
    record = json.loads((folder / "prediction.json").read_text())
    assert record["share_not_mapped"] == pytest.approx(blank.mean())


def values_of(dataset: rasterio.DatasetReader, band: dict[str, float | str]) -> NDArray[np.float32]:
    """Return a band in physical units, NaN where it is masked or implausible."""
    index = dataset.descriptions.index(band["name"]) + 1
    raw = dataset.read(index).astype(np.float64)
    with np.errstate(all="ignore"):
        values = raw * dataset.scales[index - 1] + dataset.offsets[index - 1]
        valid = (dataset.read_masks(index) > 0) & (values >= band["lowest"]) & (values <= band["highest"])
        return np.where(valid, values, np.nan).astype(np.float32)


def probability(session: onnxruntime.InferenceSession, stack: NDArray[np.float32], lattice: int) -> NDArray[np.float32]:
    """Return the probabilities of a whole stack.

    It is padded with NaN at the bottom and right.
    """
    _, height, width = stack.shape
    padding = (0, 0), (0, -height % lattice), (0, -width % lattice)
    padded = np.pad(stack, padding, constant_values=np.nan)
    return session.run(None, {"stack": padded[np.newaxis]})[0][0, 0, :height, :width]
