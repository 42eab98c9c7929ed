"""Test of a network with an encoder for each band group that maps where a group is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from stack_files import write_stack
from talud import metrics
from talud.data.patches import split_blocks
from talud.engine.runtime import Model
from talud.files import md5
from talud.project import Project
from talud.raster import open_raster
from talud.training import study

BANDS, SIDE = ("red", "vv_post"), 160
PARAMS = {
    "seed": 7,
    "areas": {"basin": {"role": "training", "folder": "data/basin"}},
    "band_sets": {"both": list(BANDS)},
    "stack": {},
    "split": {"block": 32, "patch": 16, "stride": 16},
    "training": {"depth": 3, "networks": {"dual_encoder": {"optical": "plain"}}},
    "recipe": "any_bands",
    "recipes": {
        "any_bands": {
            "dropping": {"groups": {"optical": 0.4, "sar": 0.4}, "tolerance": 1},
            "loss": "dice_cross_entropy",
            "batch_normalisation": True,
        }
    },
    "search": "small",
    "searches": {
        "small": {"network": ["dual_encoder"], "filters": [4], "learning_rate": [0.01], "batch_size": [8], "epochs": 4}
    },
}


@pytest.mark.slow
def test_dual_encoder_maps_without_optical_bands_or_without_sar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    project = Project.find(tmp_path)
    generator = np.random.default_rng(1)
    mask = np.zeros((SIDE, SIDE), np.float32)
    for row, column in generator.integers(0, SIDE - 10, (60, 2)):
        mask[row : row + 8, column : column + 6] = 1
    stack = generator.normal([[[30]], [[-9]]], [[[5]], [[2]]], (2, SIDE, SIDE)) + mask * [[[30]], [[-9]]]
    write_stack(project.stack("basin"), stack.astype(np.float32), BANDS)
    write_stack(project.mask("basin"), mask[np.newaxis], ("landslide",))
    record = {"stack_md5": md5(project.stack("basin")), "mask_md5": md5(project.mask("basin"))}
    project.stack_record("basin").parent.mkdir(parents=True, exist_ok=True)
    project.stack_record("basin").write_text(json.dumps(record))

    study.run(project, "both")
    model = Model.load(project.model("both"))
    assert model.contract.origin.network
    assert model.contract.origin.network.name == "dual_encoder"
    found = {tuple(map(str, one.groups)): one for one in model.contract.input.subsets}
    assert set(found) == {("optical", "sar"), ("optical",), ("sar",)}
    assert all(one.supported for one in found.values())
    for groups, missing in (("optical",), 1), (("sar",), 0):
        counts = metrics.Confusion()
        with open_raster(project.stack("basin")) as raster, open_raster(project.mask("basin")) as truth:
            for block in split_blocks(project.mask("basin"), project.params.split, project.params.seed):
                if block.part == "validation":
                    values = raster.read(window=block.window)
                    values[missing] = np.nan
                    mapped = model.probability(values) >= model.contract.measured.threshold
                    counts += metrics.confusion(mapped, truth.read(1, window=block.window), np.isfinite(mapped))
        assert found[groups].f1 == pytest.approx(counts.f1)
        assert counts.f1 > 0.3
