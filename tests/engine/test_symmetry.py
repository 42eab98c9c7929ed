"""Tests of test-time augmentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyogrio
import pytest
import rasterio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.features import geometry_mask
from rio_cogeo import cog_validate

from stack_files import noise, write_stack
from talud.engine.runtime import Model
from talud.engine.symmetry import SYMMETRIES, average_symmetries
from talud.engine.tiling import round_up
from talud.mapping.options import MapOptions
from talud.products.prediction import predict

Map = tuple[np.ndarray, np.ndarray]


def padded(stack: np.ndarray, alignment: int) -> np.ndarray:
    height, width = stack.shape[1:]
    margins = ((0, 0), (0, round_up(height, alignment) - height), (0, round_up(width, alignment) - width))
    return np.pad(stack, margins, constant_values=np.nan)


def eight_passes(model: Model, stack: np.ndarray) -> Map:
    """Return mean and deviation over whole passes, in double precision."""
    whole = padded(stack, model.contract.input.alignment)
    passes = []
    for quarter in range(4):
        for mirrored in (False, True):
            turned = np.rot90(whole[..., ::-1] if mirrored else whole, quarter, axes=(1, 2))
            back = np.rot90(model.run(np.ascontiguousarray(turned)), -quarter)
            passes.append(back[:, ::-1] if mirrored else back)
    values = np.stack(passes)[:, : stack.shape[1], : stack.shape[2]].astype(np.float64)
    return values.mean(axis=0), values.std(axis=0)


def tiled(model: Model, stack: np.ndarray, tile: int) -> Map:
    whole = padded(stack, model.contract.input.alignment)
    mean, spread = (np.full(stack.shape[1:], np.nan, np.float32) for _ in range(2))
    for part in model.tiling(stack.shape[1:], tile):
        core = part.core.toslices()
        mean[core], spread[core] = average_symmetries(model, whole[:, *part.window.toslices()], part)
    return mean, spread


def equal(ours: Map, theirs: Map) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_symmetries_are_distinct_and_invertible() -> None:
    array = np.arange(12).reshape(1, 3, 4)
    assert len({symmetry.apply(array).tobytes() for symmetry in SYMMETRIES}) == 8
    assert all(np.array_equal(symmetry.invert(symmetry.apply(array)), array) for symmetry in SYMMETRIES)


@pytest.mark.parametrize(
    ("depth", "size", "tiles"),
    [(2, (93, 150), (24, 64)), (3, (120, 61), (32, 64)), pytest.param(4, (259, 270), (128,), marks=pytest.mark.slow)],
)
def test_symmetric_tiles_equal_eight_passes_over_the_raster(
    unets: dict[int, Model], depth: int, size: tuple[int, int], tiles: tuple[int, ...]
) -> None:
    model, stack = unets[depth], noise(*size)
    stack[1, size[0] // 3 : size[0] // 2, : size[1] // 2] = np.nan
    whole = tiled(model, stack, 10_000)
    for ours, expected in zip(whole, eight_passes(model, stack), strict=True):
        assert np.abs(ours - expected).max() < 1e-6
    assert whole[1].max() > 0.001  # the eight passes differ
    for tile in tiles:  # plain windows, cropped ones, and both
        assert equal(tiled(model, stack, tile), whole), tile


def test_neighbouring_tiles_share_open_sessions(exporter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tile needs four sessions, and three stay open for a large network.

    Only one is opened again for the next tile.
    """
    monkeypatch.setattr("talud.engine.cropping.SESSION_CACHE_BYTES", 0)
    model, stack = Model.load(exporter(2)), noise(192, 512)
    whole = padded(stack, model.contract.input.alignment)
    opened = []
    for part in list(model.tiling((192, 512), 64))[1:7]:  # the upper row, without its corners
        assert part.edges is not None
        assert part.edges.top
        average_symmetries(model, whole[:, *part.window.toslices()], part)
        opened.append(model._cropped_sessions.session.cache_info().misses)
    assert opened == [4, 5, 6, 7, 8, 9]


@settings(max_examples=6)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(16, 50), st.integers(0, 2**32 - 1))
@example(1, 1, 4, 0)
@example(69, 70, 32, 0)
def test_symmetric_tiles_of_any_geometry_equal_eight_passes(
    unets: dict[int, Model], height: int, width: int, tile: int, seed: int
) -> None:
    stack = np.random.default_rng(seed).normal(125, 70, (3, height, width)).astype(np.float32)
    stack[stack > 300] = np.nan
    assert equal(tiled(unets[2], stack, tile), tiled(unets[2], stack, 1000))


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_symmetric_mean_commutes_with_symmetries(unets: dict[int, Model], symmetry) -> None:
    """The results are equal bit by bit if there is no padding on one side only."""
    stack = noise(40, 56)
    turned = tiled(unets[2], symmetry.apply(stack), 28)
    mean, spread = tiled(unets[2], stack, 28)
    assert equal(turned, (symmetry.apply(mean), symmetry.apply(spread)))


@pytest.mark.slow
def test_disagreement_does_not_depend_on_the_tile(model: Model, tmp_path: Path) -> None:
    values = noise(61, 90)
    values[1, 10:20, 30:50] = np.nan
    stack = write_stack(tmp_path / "stack.tif", values)
    one, other = tmp_path / "one", tmp_path / "other"
    mean, spread = eight_passes(model, values)
    threshold = float(np.median(mean))
    outcome = predict(model, stack, one, MapOptions(threshold=threshold, tta=True))
    predict(model, stack, other, MapOptions(threshold=threshold, tile=32, tta=True))
    assert outcome.tta
    names = {path.name for path in one.iterdir()}
    assert {"disagreement.tif", "disagreement.qml"} < names == {path.name for path in other.iterdir()}
    for name in names - {"prediction.json", "timings.json"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert json.loads((one / "prediction.json").read_text())["tta"] is True

    assert cog_validate(one / "disagreement.tif", strict=True) == (True, [], [])
    left_out = np.isnan(values).any(axis=0)
    for name, expected in (("probability", mean), ("disagreement", spread)):
        with rasterio.open(one / f"{name}.tif") as dataset:
            found, transform = dataset.read(1), dataset.transform
            assert (dataset.dtypes, dataset.descriptions) == (("float32",), (name,))
        assert np.array_equal(np.isnan(found), left_out)
        assert np.allclose(found[~left_out], expected[~left_out], atol=1e-6, rtol=0)
    ramp = ElementTree.parse(one / "disagreement.qml").findall(".//colorrampshader/item")
    assert [float(ramp[end].attrib["value"]) for end in (0, -1)] == [
        0,
        0.5,
    ]  # the maximum 0.5 is that of four 0 and four 1
    slides = pyogrio.read_dataframe(one / "landslides.gpkg", layer="landslides")
    largest = geometry_mask([slides.geometry[0]], found.shape, transform, invert=True)
    assert slides["disagreement"][0] == pytest.approx(spread[largest].mean(), abs=1e-6)


def test_map_without_tta_removes_an_older_disagreement(model: Model, tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "stack.tif", noise(20, 24))
    predict(model, stack, tmp_path / "map", MapOptions(tta=True))
    predict(model, stack, tmp_path / "map")
    assert not list((tmp_path / "map").glob("disagreement*"))
    assert "disagreement" not in pyogrio.read_info(tmp_path / "map/landslides.gpkg", layer="landslides")["fields"]
