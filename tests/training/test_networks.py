"""Tests of the network as a hyperparameter: every network is trained, registered, maps and is fine-tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.crs import CRS
from rasterio.transform import from_origin

from command_line import Run
from talud.engine.runtime import Model
from talud.errors import ParamsError, TaludWarning
from talud.evaluation.results import Trials
from talud.files import md5
from talud.grid import Grid
from talud.networks.catalogue import NAMES
from talud.project import Project
from talud.raster import Layout, write_cog
from talud.training import study
from talud.training.search import find_search, hyperparameter_sets

SIDE = 96
BANDS = ("red", "green", "blue", "slope")
PARAMS: dict[str, Any] = {
    "seed": 7,
    "areas": {
        "basin": {"role": "training", "folder": "data/basin"},
        "valley": {"role": "transfer", "folder": "data/valley"},
    },
    "band_sets": {"all": list(BANDS), "terrain": ["slope"]},
    "stack": {},
    "split": {"block": 32, "patch": 32, "stride": 32, "validation": 0.4},
    # Most of the time goes into tracing layers, so networks are as shallow as they can be.
    "training": {"depth": 2, "calibrate": False, "networks": {"fusion_unet": {"band_filters": 2}}},
    "search": "one",
}


def write_stack(project: Project, area: str) -> None:
    """Write a stack whose landslides are steep, its mask and its record."""
    generator = np.random.default_rng(1)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for row, column in generator.integers(0, SIDE - 8, (60, 2)):
        mask[row : row + 8, column : column + 6] = 1
    stack = generator.normal(30, 5, (len(BANDS), SIDE, SIDE)).astype(np.float32)
    stack[3] += 30 * mask
    grid = Grid(CRS.from_epsg(32618), from_origin(400_000, 650_000, 12.5, 12.5), SIDE, SIDE)
    tags = {"TALUD_RESOLUTION": "12.5", "TALUD_SLOPE": "zevenbergen_thorne"}
    layout = Layout("float32", np.nan, BANDS, ("DN", "DN", "DN", "degree"), tags)
    with write_cog(project.stack(area), grid, layout) as file:
        file.write(stack)
    with write_cog(project.mask(area), grid, Layout("uint8", None, ("landslide",))) as file:
        file.write(mask, 1)
    record = {"stack_md5": md5(project.stack(area)), "mask_md5": md5(project.mask(area))}
    project.stack_record(area).parent.mkdir(parents=True, exist_ok=True)
    project.stack_record(area).write_text(json.dumps(record))


def make_project(root: Path, network: str = "unet", **training: object) -> Project:
    search = {"network": [network], "filters": [2], "learning_rate": [0.01], "batch_size": [8], "epochs": 1}
    depth = {"depth": 3} if network == "dual_encoder" else {}
    params = {**PARAMS, "searches": {"one": search}, "training": PARAMS["training"] | depth | training}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    project = Project.find(root)
    for area in project.params.areas:
        write_stack(project, area)
    return project


@pytest.fixture
def _in_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("talud.training.study.current_commit", lambda _: "c0ffee")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("_in_project", "eager_tensorflow")
@pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")
@pytest.mark.parametrize("network", NAMES)
def test_every_network_is_trained_registered_and_maps(network: str, tmp_path: Path, talud: Run) -> None:
    project = make_project(tmp_path, network)

    def run(*arguments: object) -> str:
        code, out, err = talud(*arguments)
        assert code == 0, err
        return out

    named = "" if network == "unet" else f"{network} · "
    assert f"models/all.onnx: exported from trial {named}2 filters · lr 0.01 · batch 8" in run("train", "all")
    model = Model.load(project.model("all"))
    origin = model.contract.origin
    assert (origin.network_name, origin.hyperparameters["network"]) == (network, network)
    trial = Trials.read(project.trials("all")).best_trial
    assert (trial.network, trial.parameters > 0) == (network, True)
    assert "landslide-unet-all version 1" in run("register", "all")
    run("predict", "models:/landslide-unet-all/1", "stacks/valley.tif", "--out", "map")
    with rasterio.open("map/probability.tif") as mapped, rasterio.open(project.stack("valley")) as stack:
        np.testing.assert_array_equal(mapped.read(1), model.run(stack.read()))
    if network == "dual_encoder":  # one of the networks that only their options describe
        run("finetune", "landslide-unet-all/1", "valley", "--patches", 2, "--steps", 1)
        assert "dual_encoder: filters 2, depth 3, groups" in run("models", "show", "landslide-unet-all/2")


@pytest.mark.usefixtures("_in_project")
def test_bands_without_rgb_start_from_random_weights(tmp_path: Path) -> None:
    project = make_project(tmp_path, "pretrained_unet")
    (chosen,) = hyperparameter_sets(find_search(project.params, "one"), 7)
    message = "pretrained_unet starts from random weights: its initial weights need .*, and the band set has slope"
    with pytest.warns(TaludWarning, match=message):
        networks = study._networks(project, [chosen], project.params.band_set("terrain"))
    assert networks["pretrained_unet"].alignment == 16
    # No warning if the bands are there, or if no weights are wanted.
    study._networks(project, [chosen], project.params.band_set("all"))
    without = make_project(tmp_path, "pretrained_unet", networks={"pretrained_unet": {"weights": "none"}})
    study._networks(without, [chosen], project.params.band_set("terrain"))


@pytest.mark.usefixtures("_in_project")
def test_patches_unsuited_to_a_network_are_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path, "unet", depth=6)
    with pytest.raises(ParamsError, match=r"^split\.patch is 32 .* network unet of depth 6 needs a multiple of 64"):
        study.run(project, "all")
    project = make_project(tmp_path, "pretrained_unet", networks={"pretrained_unet": {"stages": "all"}})
    for area in project.params.areas_with_role("training"):
        with rasterio.open(project.stack(area), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as stack:
            stack.update_tags(TALUD_PATCH="48")
    with pytest.raises(ParamsError, match=r"basin\.tif: .* 48 pixels, but the network pretrained_unet needs .* of 32"):
        study.run(project, "all")
