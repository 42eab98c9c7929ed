"""Fuzz tests of `talud predict`: a correct map or one line of error.

There is no traceback, hang, crash or partial map.

Each case has a name that seeds its random generator, so a failing case can be run alone:
`pytest tests/cli/test_fuzz.py -k "raster-flipped-compressed-3"`. FUZZ_SEED gives other damage than CI sees, FUZZ_TIMES
so many times as much of it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import hostile_models
import hostile_rasters
from hostile_process import Worker, check_refusal
from map_oracle import check_map

SEED = int(os.environ.get("FUZZ_SEED", "0"))
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))

Ends = Literal["map", "refusal", "either"]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")]


@dataclass(frozen=True)
class Case:
    """Model, raster and expected result of a command."""

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


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"))
    yield worker
    worker.stop()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_predict_maps_hostile_input_or_fails_in_one_line(
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
        check_refusal(code, out, err)
        kept = {".map.partial"} if "finished tiles are kept" in err else set()
        assert {path.name for path in tmp_path.iterdir()} == {"in"} | kept
        print(err)  # pytest -rP shows the error of each case
    assert [path.name for path in worker.folder.iterdir()] == []
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == given  # no pickled code was run
