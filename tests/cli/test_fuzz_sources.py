"""Fuzz tests of inventories and masks given to `talud stack`.

Every pixel of the mask is correct, or there is one line of error.

Cases are named and seeded as in `test_fuzz`: `pytest tests/cli/test_fuzz_sources.py -k "vector-kml-hole"` runs one.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import rasterio
from PIL import Image

import hostile_masks
import hostile_vectors
from hostile_process import Worker, check_refusal
from source_files import write_project, write_raster

SEED = int(os.environ.get("FUZZ_SEED", "0"))
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
PATCHES = 4

Ends = Literal["mask", "refusal", "either"]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"))
    yield worker
    worker.stop()


def chance_of(name: str) -> np.random.Generator:
    return np.random.default_rng([SEED, zlib.crc32(name.encode())])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Vector:
    """An inventory: geometries and their format, or a damaged file."""

    name: str
    ends: Ends
    write: Callable[[Path, np.random.Generator], object]
    drawn: str | None = None


def vectors() -> Iterator[Vector]:
    """Yield valid inventories of all drawings and formats, and invalid ones.

    Each drawing occurs in at least one format, and each format with several drawings.
    """
    drawn, writers = list(hostile_vectors.DRAWN), list(hostile_vectors.WRITERS)
    for index, (writer, write) in enumerate(hostile_vectors.WRITERS.items()):
        for step in range(5 * TIMES):
            what = drawn[(3 * step + 2 * index) % len(drawn)]
            if (writer, what) in hostile_vectors.UNLIKE_AS_WRITTEN:
                what = drawn[step % 2]
            yield Vector(f"vector-{writer}-{what}-{step}", "mask", drawing(write, what), what)
    for what in drawn:
        yield Vector(f"vector-{writers[0]}-{what}", "mask", drawing(hostile_vectors.WRITERS["gpkg"], what), what)
    for name, make in hostile_vectors.REFUSED.items():
        yield Vector(f"vector-{name}", "refusal", make)
    for writer, file in (("gpkg", "inventory.gpkg"), ("shp", "inventory.shp"), ("geojson", "inventory.geojson")):
        for way in ("cut", "flipped"):
            for index in range(3 * TIMES):
                make = hostile_vectors.damaged(writer, file, way)
                yield Vector(f"vector-{way}-{writer}-{index}", "either", make)


def drawing(write: hostile_vectors.Write, what: str) -> Callable[[Path, np.random.Generator], object]:
    def make(folder: Path, chance: np.random.Generator) -> object:
        return write(folder, hostile_vectors.DRAWN[what](chance))

    return make


VECTORS = list(vectors())


def inventory_project(root: Path) -> Path:
    """Create a project with one training area, and return the area's folder."""
    folder = root / "data/here"
    side = hostile_vectors.SIDE_PIXELS
    image = np.random.default_rng(0).integers(30, 220, (3, side, side)).astype(np.uint8)
    write_raster(folder / "optical.tif", image)
    write_project(root, {"here": {"role": "training", "folder": "data/here"}})
    return folder


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case.name)
def test_hostile_inventory_gives_correct_mask_or_one_line(case: Vector, worker: Worker, tmp_path: Path) -> None:
    folder = inventory_project(tmp_path / "project")
    case.write(folder, chance_of(case.name))
    before = contents(folder)
    code, out, err = worker.run("stack", "here", folder=tmp_path / "project")
    assert contents(folder) == before
    if case.ends == "mask":
        assert code == 0, err
    if case.ends == "refusal" or code:
        check_refusal(code, out, err)
        assert not contents(tmp_path / "project/stacks")
        print(err)  # pytest -rP shows the error of each case
    elif case.drawn:
        inside, near = hostile_vectors.truth(hostile_vectors.DRAWN[case.drawn](chance_of(case.name)))
        with rasterio.open(tmp_path / "project/stacks/here.mask.tif") as dataset:
            mask = dataset.read(1)
        assert np.array_equal(mask[~near], inside[~near].astype(np.uint8))
        record = json.loads((tmp_path / "project/stacks/training/here.json").read_text())
        assert record["landslide_pixels"] == np.count_nonzero(mask == 1)


def test_mask_includes_uncommitted_edits_of_an_open_geopackage(worker: Worker, tmp_path: Path) -> None:
    folder = inventory_project(tmp_path / "project")
    geometries = hostile_vectors.stars(4)(chance_of("pending"))
    close = hostile_vectors.geopackage_with_pending_edits(folder, geometries)
    before = contents(folder)
    code, _, err = worker.run("stack", "here", folder=tmp_path / "project")
    assert code == 0, err
    assert contents(folder) == before
    close()
    inside, near = hostile_vectors.truth(geometries)
    with rasterio.open(tmp_path / "project/stacks/here.mask.tif") as dataset:
        assert np.array_equal(dataset.read(1)[~near], inside[~near].astype(np.uint8))


@dataclass(frozen=True)
class Masks:
    """Patches whose masks have the same format."""

    name: str
    ends: Ends
    write: hostile_masks.Write


def masks() -> Iterator[Masks]:
    for name, write in hostile_masks.READ.items():
        yield Masks(f"mask-{name}", "mask", write)
    for name, write in hostile_masks.REFUSED.items():
        yield Masks(f"mask-{name}", "refusal", write)


@pytest.mark.parametrize("case", list(masks()), ids=lambda case: case.name)
def test_hostile_masks_give_correct_truth_or_one_line(case: Masks, worker: Worker, tmp_path: Path) -> None:
    root, chance = tmp_path / "project", chance_of(case.name)
    folder, side = root / "data/patches", hostile_masks.SIDE
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    expected = []
    for number in range(PATCHES):
        image = chance.integers(30, 220, (side, side, 3), np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        truth = (chance.random((side, side)) < 0.3).astype(np.uint8)
        if case.name.removeprefix("mask-") in hostile_masks.UNKNOWN_TOLD:
            truth[3:5] = 255
        case.write(folder / "masks" / str(number), truth)
        expected.append(truth)
    write_project(root, {"here": {"role": "training", "folder": "data/patches", "patches": {}}})
    before = contents(folder)
    code, out, err = worker.run("stack", "here", folder=root)
    assert contents(folder) == before
    if case.ends == "mask":
        assert code == 0, err
        with rasterio.open(root / "stacks/here.mask.tif") as dataset:
            mask = dataset.read(1)
        found = [
            mask[top : top + side, left : left + side]
            for top in range(0, mask.shape[0], side)
            for left in range(0, mask.shape[1], side)
        ]
        for patch, truth in zip(found, expected, strict=False):
            assert np.array_equal(patch, truth)
    else:
        check_refusal(code, out, err)
        assert not contents(root / "stacks")
        print(err)
