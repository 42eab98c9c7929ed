"""Hostile input to `talud predict`: a correct map, or one line of error; no traceback, hang, crash or half a map.

Each case has a name and draws from a generator that is seeded by that name, so one that fails can be run alone:
`pytest tests/cli/test_fuzz.py -k "raster-flipped-compressed-3"`. FUZZ_SEED gives other damage than CI sees, FUZZ_TIMES
so many times as much of it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import pytest
import rasterio
from numpy.typing import NDArray

import hostile_models
import hostile_rasters

SEED = int(os.environ.get("FUZZ_SEED", "0"))
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
PATIENCE = 30  # seconds for one case
LONGEST = 1500  # characters of a line of error
PRODUCTS = {
    "probability.tif", "probability.qml", "landslides.tif", "landslides.qml", "landslides.gpkg", "quicklook.png",
    "summary.html", "prediction.json", "timings.json",
}  # fmt: skip

Ends = Literal["map", "refusal", "either"]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")]


@dataclass(frozen=True)
class Case:
    """A model, a raster, and how the command must end."""

    name: str
    ends: Ends
    raster: hostile_rasters.Make
    model: hostile_models.Make = hostile_models.unchanged
    tile: int | None = None


def cases() -> Iterator[Case]:
    rasters = (
        ("map", hostile_rasters.MAPPED),
        ("refusal", hostile_rasters.REFUSED),
        ("either", hostile_rasters.EITHER),
    )
    models = (("map", hostile_models.MAPPED), ("refusal", hostile_models.REFUSED), ("either", hostile_models.EITHER))
    usual = hostile_rasters.Written(shape=(33, 40))
    for ends, makes in rasters:
        for name, raster in makes.items():
            yield Case(f"raster-{name}", ends, raster)
    for ends, makes in models:
        for name, model in makes.items():
            yield Case(f"model-{name}", ends, usual, model, tile=16)
    for base in hostile_rasters.BASES:
        for way, number in (("cut", 4), ("flipped", 12)):
            for index in range(number * TIMES):
                yield Case(f"raster-{way}-{base}-{index}", "either", hostile_rasters.damaged(base, way))
    for way, number in (("cut", 8), ("flipped", 24)):
        for index in range(number * TIMES):
            yield Case(f"model-{way}-{index}", "either", usual, hostile_models.damaged(way), tile=16)


CASES = list(cases())


class Worker:
    """A process that runs the command line; a new one where the last has died."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.process or self._started()
        self.requests.write(json.dumps(arguments) + "\n")
        self.requests.flush()
        if not select.select([self.answers], [], [], PATIENCE)[0]:
            self.stop()
            pytest.fail(f"no end after {PATIENCE} seconds")
        answer = self.answers.readline()
        if not answer:
            code = process.wait()
            self.process = None
            pytest.fail(f"the process died: {code}")
        code, out, err = json.loads(answer)
        return code, out, err

    def _started(self) -> subprocess.Popen[bytes]:
        (requests, to), (of, answers) = os.pipe(), os.pipe()
        program = Path(__file__).parents[1] / "hostile_worker.py"
        command = [sys.executable, program, str(requests), str(answers)]
        self.process = subprocess.Popen(command, cwd=self.folder, pass_fds=(requests, answers))
        os.close(requests)
        os.close(answers)
        self.requests, self.answers = os.fdopen(to, "w"), os.fdopen(of)
        return self.process

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.requests.close()
            self.answers.close()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"))
    yield worker
    worker.stop()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_input_ends_in_a_correct_map_or_one_line(
    case: Case, worker: Worker, tiny_model: Path, tmp_path: Path
) -> None:
    chance = np.random.default_rng([SEED, zlib.crc32(case.name.encode())])
    (tmp_path / "in").mkdir()
    raster = case.raster(tmp_path / "in", chance)
    model = case.model(tmp_path / "in", chance, tiny_model)
    given = sorted(path.name for path in (tmp_path / "in").iterdir())
    options = ["--tile", str(case.tile)] if case.tile else []
    code, out, err = worker.run("predict", model, raster, "--out", str(tmp_path / "map"), *options)
    assert code in {"map": {0}, "refusal": {1}, "either": {0, 1}}[case.ends], err or out
    if code == 0:
        assert err == ""
        assert {path.name for path in tmp_path.iterdir()} == {"in", "map"}
        check_map(tmp_path / "map", Path(model), raster)
    else:
        assert out == ""
        assert err.startswith("talud: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert len(err) < LONGEST
        assert "not enough memory" not in err
        kept = {".map.partial"} if "finished tiles are kept" in err else set()
        assert {path.name for path in tmp_path.iterdir()} == {"in"} | kept
        print(err)  # pytest -rP shows what each case is told
    assert [path.name for path in worker.folder.iterdir()] == []
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == given  # nothing that was pickled has run


def check_map(folder: Path, model: Path, raster: str) -> None:
    """That a map is what the graph makes of the values, read and run without talud, in one pass."""
    assert {path.name for path in folder.iterdir()} == PRODUCTS
    session = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
    contract = json.loads(session.get_modelmeta().custom_metadata_map["talud.contract"])
    with rasterio.open(raster) as dataset:
        stack = np.stack([values_of(dataset, band) for band in contract["bands"]])
        place = dataset.crs, dataset.transform, dataset.shape
    expected = probability(session, stack, contract["alignment"])
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
    assert np.array_equal(classes, np.where(blank, 255, found >= contract["threshold"]))
    record = json.loads((folder / "prediction.json").read_text())
    assert record["share_not_mapped"] == pytest.approx(blank.mean())


def values_of(dataset: rasterio.DatasetReader, band: dict[str, float | str]) -> NDArray[np.float32]:
    """A band in physical units, NaN where it is masked or implausible."""
    index = dataset.descriptions.index(band["name"]) + 1
    raw = dataset.read(index).astype(np.float64)
    with np.errstate(all="ignore"):
        values = raw * dataset.scales[index - 1] + dataset.offsets[index - 1]
        valid = (dataset.read_masks(index) > 0) & (values >= band["lowest"]) & (values <= band["highest"])
        return np.where(valid, values, np.nan).astype(np.float32)


def probability(session: onnxruntime.InferenceSession, stack: NDArray[np.float32], lattice: int) -> NDArray[np.float32]:
    """What the graph makes of a whole stack, which is filled up with NaN at the bottom and right."""
    _, height, width = stack.shape
    padding = (0, 0), (0, -height % lattice), (0, -width % lattice)
    padded = np.pad(stack, padding, constant_values=np.nan)
    return session.run(None, {"stack": padded[np.newaxis]})[0][0, 0, :height, :width]
