"""Test of configs/sen12landslides.yaml on twelve synthetic patches in that layout."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml

from command_line import runner
from fresh_clone import ROOT
from patch_cubes import POST, PRE, synthetic_patch
from talud.data.patches import split_blocks
from talud.engine.runtime import Model
from talud.project import Project

pytestmark = pytest.mark.slow

SIDE = 32
PARTS = {"train": 8, "val": 2, "test": 2}


@pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")
@pytest.mark.usefixtures("eager_tensorflow")
def test_band_sets_train_and_score_on_official_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data" / "sen12landslides"
    names = [f"{region}_{number}" for region in ("italy", "chile") for number in range(6)]
    variables = {name: synthetic_patch(folder, name, seed, SIDE) for seed, name in enumerate(names)}
    parts = iter(np.random.default_rng(1).permutation(names).tolist())
    splits = {part: [{"id": next(parts)} for _ in range(count)] for part, count in PARTS.items()}
    (folder / "splits_aligned.json").write_text(json.dumps(splits))
    params = yaml.safe_load((ROOT / "configs" / "sen12landslides.yaml").read_text())
    params["split"] |= {"block": SIDE, "patch": SIDE, "stride": SIDE}
    params["training"]["depth"] = 1
    params["searches"]["seeds"] |= {"filters": [2], "batch_size": [4], "epochs": 1, "seeds": [1]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    for command in ("init", "add params.yaml", "-c user.name=nobody -c user.email=nobody@localhost commit -m start"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    talud = runner(monkeypatch, capsys)
    for command in ("stack inventories", "train 3band", "train 5band", "train 7band", "evaluate 7band"):
        code, _, said = talud(*command.split())
        assert code == 0, (command, said)

    project = Project.find(tmp_path)
    blocks = split_blocks(project.mask("inventories"), project.params.split, project.params.seed)
    assert [block.part for block in blocks] == ["training"] * 8 + ["validation"] * 2 + ["test"] * 2
    record = json.loads(project.stack_record("inventories").read_text())
    in_order = [sorted(row["id"] for row in rows) for rows in splits.values()]
    assert record["patches"] == [name for part in in_order for name in part]

    with rasterio.open(project.stack("inventories")) as stack, rasterio.open(project.mask("inventories")) as mask:
        for name, block in zip(record["patches"], blocks, strict=True):
            bands = dict(zip(stack.descriptions, stack.read(window=block.window), strict=True))
            own = variables[name]
            np.testing.assert_allclose(bands["red"], own["B04"][POST] / 1e4, rtol=1e-6)
            np.testing.assert_allclose(bands["vv_pre"], own["VV"][PRE], rtol=1e-5)
            rows, columns = np.gradient(own["DEM"][0].astype(float), 10)
            np.testing.assert_allclose(bands["slope"], np.degrees(np.arctan(np.hypot(rows, columns))), atol=1e-3)
            np.testing.assert_array_equal(mask.read(1, window=block.window), own["MASK"][0])

    contracts = {name: Model.load(project.model(name)).contract for name in ("3band", "5band", "7band")}
    assert [len(contract.input.bands) for contract in contracts.values()] == [3, 5, 7]
    assert [band.unit for band in contracts["7band"].input.bands] == (
        ["reflectance"] * 3 + ["degree", "1/100m"] + ["dB"] * 2
    )
    assert contracts["7band"].input.stack["sar_unit"] == "db"
    scores = json.loads(project.scores("7band").read_text())["test"]["inventories"]
    truth = sum(int(variables[row["id"]]["MASK"][0].sum()) for row in splits["test"])
    assert scores["tp"] + scores["fn"] == truth
    assert sum(scores[count] for count in ("tp", "fp", "fn", "tn")) == 2 * SIDE * SIDE
