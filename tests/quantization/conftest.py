"""Fixtures for the tests of reduced precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from stack_files import grid_of, noise, write_stack
from talud.data.stack_record import data_version
from talud.engine.runtime import Model
from talud.files import md5
from talud.project import Project
from talud.raster import Layout, write_cog

SIDE = 128
PARAMS = {
    "seed": 7,
    "areas": {"basin": {"role": "training", "folder": "data/basin"}},
    "band_sets": {"3band": ["red", "green", "blue"]},
    "stack": {},
    "split": {"block": 32, "patch": 16, "stride": 16},
    "training": {"depth": 2},
    "search": "demo",
    "searches": {"demo": {"filters": [4], "learning_rate": [0.001], "batch_size": [8], "epochs": 1}},
}


def write_area(project: Project, stack: np.ndarray) -> None:
    """Write the stack of `basin`, a mask with 10 % landslides, and their record."""
    write_stack(project.stack("basin"), stack, units=["DN"] * 3)
    rows, _ = np.indices((SIDE, SIDE))
    with write_cog(project.mask("basin"), grid_of(SIDE, SIDE), Layout("uint8", 255, ["landslide"])) as mask:
        mask.write((rows % 10 == 0).astype(np.uint8), 1)
    digests = {"stack_md5": md5(project.stack("basin")), "mask_md5": md5(project.mask("basin"))}
    project.stack_record("basin").parent.mkdir(parents=True, exist_ok=True)
    project.stack_record("basin").write_text(json.dumps(digests))


def write_model(project: Project, tiny_model: Path) -> None:
    """Write a model whose contract claims training on the current stack.

    Its threshold is near the middle of its probabilities.
    """
    contract = Model.load(tiny_model).contract.replace(
        areas=("basin",),
        data_version=data_version(project, ("basin",)),
        hyperparameters={"filters": 4, "depth": 2, **project.params.split_hyperparameters},
        threshold=0.45,
    )
    graph = onnx.load(tiny_model)
    onnx.helper.set_model_props(graph, contract.to_metadata())
    path = project.model("3band")
    path.parent.mkdir(exist_ok=True)
    onnx.save(graph, path)


def train(project: Project, tiny_model: Path, stack: np.ndarray) -> None:
    """Write a stack and a model whose contract claims training on it."""
    write_area(project, stack)
    write_model(project, tiny_model)


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    """Return a project with one training area and a model of it."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    found, stack = Project.find(tmp_path), noise(SIDE, SIDE)
    stack[1, 40:50, 20:60] = np.nan
    train(found, tiny_model, stack)
    return found


@pytest.fixture
def retrain(project: Project, tiny_model: Path) -> Callable[[np.ndarray], None]:
    """Return a function that replaces the stack and the model of the project."""
    return partial(train, project, tiny_model)
