"""Fixtures for the tests of engine, mapping, products and measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stack_files import RGB
from talud.bands import Group, band_named, groups_of
from talud.engine.runtime import Model

Exporter = Callable[..., Path]


@pytest.fixture(autouse=True)
def away_from_this_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder outside this repository.

    The repository is a project, which would record the maps of tests.
    """
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def model(tiny_model: Path) -> Model:
    return Model.load(tiny_model)


@pytest.fixture(scope="session")
def exporter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """Return a function that exports a U-Net with seeded random weights."""
    contract = Model.load(tiny_model).contract

    def export(depth: int, names: Sequence[str] = RGB, required: Sequence[Group] | None = None, **stated: Any) -> Path:
        from onnx_writer import to_onnx
        from talud.engine.margins import receptive_field
        from talud.engine.model_file import weights_digest
        from talud.networks import unet
        from talud.training import export as exporting

        mean, deviation = (np.full(len(names), value, np.float32) for value in (125, 70))
        graph = to_onnx(unet.build(filters=3, depth=depth, mean=mean, deviation=deviation, seed=depth))
        field = receptive_field(graph)
        like = contract.input.bands[0]
        bands = tuple(
            like.model_copy(
                update={"name": name, "group": band_named(name).group, "unit": band_named(name).unit or like.unit}
            )
            for name in names
        )
        stated = {
            "bands": bands,
            "required_groups": tuple(required) if required is not None else groups_of(tuple(names)),
            "halo": field.halo,
            "alignment": field.alignment,
            "weights": weights_digest(graph),
            "hyperparameters": {"filters": 3, "depth": depth},
            **stated,
        }
        path = tmp_path_factory.mktemp("model") / f"depth{depth}.onnx"
        exporting.save_model(graph, contract.replace(**stated), path)
        return path

    return export


@pytest.fixture(scope="session")
def unets(exporter: Exporter) -> dict[int, Model]:
    """Return models of three bands by depth."""
    return {depth: Model.load(exporter(depth)) for depth in (2, 3, 4)}
