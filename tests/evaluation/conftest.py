"""Small project with stacks, a model and maps for the evaluation tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from affine import Affine
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rasterio.crs import CRS
from scipy import ndimage

from talud.bands import band_named, groups_of
from talud.contract import BandContract, Contract, Measurements, ModelInput, ModelOrigin
from talud.data.stack_record import data_version
from talud.engine.runtime import Model
from talud.files import md5
from talud.grid import Grid
from talud.products.prediction import predict
from talud.project import Project
from talud.raster import Layout, write_cog

SIDE = 192
# Weights of the model, which reads single pixels.
WEIGHTS = {"red": 9.0, "green": -4.0}
BIAS = -2.0
THRESHOLD = 0.6

PARAMS = {
    "seed": 7,
    "areas": {
        "home": {
            "role": "training",
            "folder": "data/home",
            "event": "2014-11-02",
            "acquired": {"optical": "2014-12-20"},
        },
        "away": {"role": "transfer", "folder": "data/away", "event": "2015-05-18"},
    },
    "band_sets": {"3band": ["red", "green", "blue"], "terrain": ["slope", "curvature"]},
    "stack": {},
    "split": {"block": 32, "patch": 16, "stride": 16},
    "training": {},
    "search": "demo",
    "searches": {"demo": {"filters": [4], "learning_rate": [0.001], "batch_size": [8], "epochs": 2}},
}


def write_raster(
    path: Path, pixels: NDArray[np.generic], nodata: float, names: list[str], tags: dict[str, str] | None = None
) -> None:
    """Write (bands, height, width) on a 12.5 m grid of UTM zone 18 N."""
    grid = Grid(CRS.from_epsg(32618), Affine(12.5, 0, 400_000, 0, -12.5, 650_000), *pixels.shape[1:])
    kind = "average" if pixels.dtype == np.float32 else "mode"
    with write_cog(path, grid, Layout(str(pixels.dtype), nodata, names, (), tags or {}, {}, kind)) as writer:
        writer.write(pixels)


def write_model(path: Path, name: str, names: tuple[str, ...], weights: dict[str, float], version: str) -> None:
    """Write an ONNX model: a logistic regression of a pixel's bands.

    NaN is read as 0.
    """
    kernel = np.array([weights.get(band_name, 0.0) for band_name in names], np.float32).reshape(1, -1, 1, 1)
    nodes = [
        helper.make_node("IsNaN", ["stack"], ["invalid"]),
        helper.make_node("Where", ["invalid", "zero", "stack"], ["clean"]),
        helper.make_node("Conv", ["clean", "kernel", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    constants = {"kernel": kernel, "bias": np.array([BIAS], np.float32), "zero": np.array(0, np.float32)}
    graph = helper.make_graph(
        nodes,
        "logistic",
        [helper.make_tensor_value_info("stack", TensorProto.FLOAT, ["batch", len(names), "height", "width"])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", 1, "height", "width"])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, _contract(name, names, version).to_metadata())
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def _contract(name: str, names: tuple[str, ...], version: str) -> Contract:
    bands = tuple(
        BandContract(
            name=band_name,
            group=band_named(band_name).group,
            unit="degree" if band_name == "slope" else "1/100m" if band_name == "curvature" else "reflectance",
            lowest=-100,
            highest=100,
            mean=0,
            deviation=1,
            minimum=-1,
            maximum=1,
        )
        for band_name in names
    )
    return Contract(
        input=ModelInput(
            bands=bands,
            required_groups=groups_of(names),
            pixel_size=12.5,
            halo=0,
            alignment=1,
            stack={"resolution": "12.5"},
        ),
        origin=ModelOrigin(
            name=name,
            weights="0" * 64,
            data_version=version,
            areas=("home",),
            commit="0123456789abcdef",
            run_id="f" * 32,
            hyperparameters={"filters": 4},
        ),
        measured=Measurements(
            threshold=THRESHOLD,
            scores={"f1": 0.5},
        ),
    )


def write_area(project: Project, area: str, seed: int, *, synthetic: bool = True) -> None:
    """Write stack and mask of an area.

    Landslides are red and noisy, clouds hide some, and the truth of a border is unknown.
    """
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.normal(size=(SIDE, SIDE)), 3)
    truth = (field > np.quantile(field, 0.93)).astype(np.uint8)
    bands = random.normal([0.2, 0.4, 0.1, 30, 0], [0.1, 0.1, 0.05, 8, 1], (SIDE, SIDE, 5)).astype(np.float32)
    bands = np.ascontiguousarray(np.moveaxis(bands, -1, 0))
    bands[0] += 0.4 * truth
    bands[3] += 10 * truth
    cloud = ndimage.gaussian_filter(random.normal(size=(SIDE, SIDE)), 10)
    bands[:3, cloud > np.quantile(cloud, 0.9)] = np.nan
    truth[:, :7] = 255
    tags = {"TALUD_AREA": area} | ({"TALUD_SYNTHETIC": "yes"} if synthetic else {})
    names = ["red", "green", "blue", "slope", "curvature"]
    units = ("reflectance", "reflectance", "reflectance", "degree", "1/100m")
    grid = Grid(CRS.from_epsg(32618), Affine(12.5, 0, 400_000, 0, -12.5, 650_000), SIDE, SIDE)
    with write_cog(project.stack(area), grid, Layout("float32", float("nan"), names, units, tags)) as writer:
        writer.write(bands)
    write_raster(project.mask(area), truth[np.newaxis], 255, ["landslide"])
    write_record(project, area)


def write_record(project: Project, area: str) -> None:
    """Write the record from which the data version is computed."""
    project.stack_record(area).parent.mkdir(parents=True, exist_ok=True)
    digests = {"stack_md5": md5(project.stack(area)), "mask_md5": md5(project.mask(area))}
    project.stack_record(area).write_text(json.dumps(digests), encoding="utf-8")


def write_trials(project: Project, band_set: str) -> None:
    """Write a table of two trials."""
    trials = [
        {
            "run_id": f"{number:032x}",
            "name": f"trial {number}",
            "filters": 4,
            "learning_rate": 0.001,
            "batch_size": 8 * number,
            "epochs": 2,
            "best_epoch": 2,
            "seconds": 1.5,
            "parameters": 1234,
            "scores": {"precision": 0.5, "recall": 0.25 * number, "f1": 0.3 * number, "iou": 0.2 * number},
        }
        for number in (1, 2)
    ]
    table = {"band_set": band_set, "search": "demo", "data_version": "0" * 32, "seed": 7, "parent_run_id": "p"}
    project.trials(band_set).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**table, "best": trials[1]["run_id"], "trials": trials, "failed": []})
    project.trials(band_set).write_text(text, encoding="utf-8")


def make_project(root: Path, params: dict[str, object] = PARAMS, *, synthetic: bool = True) -> Project:
    """Make a project with stacks, models, trials and maps, without scores."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    project = Project.find(root)
    for seed, area in enumerate(project.params.areas):
        write_area(project, area, seed, synthetic=synthetic)
    for band_set, names in project.params.band_sets.items():
        weights = WEIGHTS if "red" in names else {"slope": 0.08}
        write_model(project.model(band_set), band_set, names, weights, data_version(project, ("home",)))
        write_trials(project, band_set)
        model = Model.load(project.model(band_set))
        for area in project.params.areas:
            predict(model, project.stack(area), project.prediction(band_set, area))
    return project


@pytest.fixture
def small_project(tmp_path: Path, project_template: Path) -> Project:
    """Copy of the small project that a test may change."""
    import shutil

    shutil.copytree(project_template, tmp_path / "project")
    return Project.find(tmp_path / "project")


@pytest.fixture(scope="session")
def project_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small project that tests must not change."""
    return make_project(tmp_path_factory.mktemp("evaluation") / "project").root
