"""Tests of `talud quantize`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio
import yaml

from command_line import Run
from stack_files import noise, window_probabilities, write_stack
from talud import load_model, metrics
from talud.contract import variant_path
from talud.data.patches import split_blocks
from talud.engine.runtime import Model
from talud.errors import ModelError, StudyError
from talud.mapping.options import MapOptions
from talud.products.prediction import predict
from talud.project import Project
from talud.quantization import variant
from talud.raster import open_raster
from talud.training import export

Retrain = Callable[[np.ndarray], None]
QUANTIZE = "from talud.cli.main import main; main()"


def validation(project: Project, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return flat probabilities and truths on the validation blocks."""
    params = project.params
    windows = [
        block.window
        for block in split_blocks(project.mask("basin"), params.split, params.seed)
        if block.part == "validation"
    ]
    found = window_probabilities(Model.load(path), project.stack("basin"), windows)
    with open_raster(project.mask("basin")) as mask:
        truth = [mask.read(1, window=window).ravel() for window in windows]
    return np.concatenate([block.ravel() for block in found]), np.concatenate(truth)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_variant_contract_states_its_loss(project: Project, precision: str) -> None:
    path = project.model("3band")
    made = variant.make_variant(project, path, precision)
    assert made.path == path.with_name(f"3band.{precision}.onnx")
    assert made.path.stat().st_size < path.stat().st_size
    contract, original = Model.load(made.path).contract, Model.load(path).contract
    assert contract == made.contract
    assert contract.derived.precision == precision
    assert contract.is_variant_of(original)
    assert contract.measured.halo_errors == {}  # those of the float32 file do not apply
    own = {"precision", "scores", "validation", "loss", "halo_errors"}
    assert {name for name, value in contract.flat().items() if value != original.flat()[name]} <= own

    (ours, truth), (theirs, _) = validation(project, made.path), validation(project, path)
    f1 = [
        metrics.confusion(found >= original.measured.threshold, truth, np.isfinite(found)).f1
        for found in (ours, theirs)
    ]
    assert contract.measured.scores["f1"] == f1[0] > 0
    counts = contract.measured.validation
    assert counts is not None
    assert metrics.Confusion(counts.tp, counts.fp, counts.fn, counts.tn).scores() == contract.measured.scores
    assert contract.measured.loss["f1"] == f1[1] - f1[0]
    difference = np.abs(ours.astype(np.float64) - theirs)
    assert contract.measured.loss["largest_difference"] == pytest.approx(np.nanmax(difference), rel=1e-6)
    assert contract.measured.loss["mean_difference"] == pytest.approx(np.nanmean(difference), rel=1e-6)
    assert 0 < contract.measured.loss["mean_difference"] < 0.01


@pytest.mark.slow
def test_variant_is_reproducible_across_processes(project: Project) -> None:
    """Use two processes with different hash seeds."""
    path, made = project.model("3band"), []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", QUANTIZE, "quantize", str(path)]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        result = subprocess.run(command, cwd=project.root, env=environment, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")
        made.append(variant_path(path, "int8").read_bytes())
    assert made[0] == made[1]


@pytest.mark.slow
def test_variant_is_calibrated_on_training_blocks_only(project: Project, retrain: Retrain) -> None:
    """Change other blocks, which keeps the graph, and training blocks."""
    graphs = []
    blocks = split_blocks(project.mask("basin"), project.params.split, project.params.seed)
    for brightened in ((), ("validation", "test"), ("training",)):
        stack = noise(128, 128)
        for block in blocks:
            if block.part in brightened:
                stack[:, *block.window.toslices()] *= 2
        retrain(stack)
        graphs.append(onnx.load(variant.make_variant(project, project.model("3band"), "int8").path).graph)
    plain, others, training = (graph.SerializeToString(deterministic=True) for graph in graphs)
    assert plain == others
    assert plain != training


@pytest.mark.parametrize("name", ["missing.onnx", "params.yaml", "models/3band.int8.onnx"])
def test_quantize_refuses_other_files_in_one_line(
    project: Project, name: str, monkeypatch: pytest.MonkeyPatch, talud: Run
) -> None:
    variant.make_variant(project, project.model("3band"), "int8")
    monkeypatch.chdir(project.root)
    code, out, err = talud("quantize", name)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"talud: {name}: ")


def test_variant_of_changed_data_or_split_is_refused(project: Project) -> None:
    path = project.model("3band")
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    (project.root / "params.yaml").write_text(yaml.safe_dump(params | {"seed": 8}))
    with pytest.raises(StudyError, match="was trained with seed 7"):
        variant.make_variant(Project.find(project.root), path, "int8")
    project.stack_record("basin").write_text(json.dumps({"stack_md5": "0" * 32, "mask_md5": "0" * 32}))
    with pytest.raises(StudyError, match="was trained on other stacks"):
        variant.make_variant(project, path, "int8")
    assert not variant_path(path, "int8").exists()


def test_load_model_selects_variant_by_precision(project: Project) -> None:
    path = project.model("3band")
    with pytest.raises(ModelError, match=r"3band\.int8\.onnx: no such file; make it with talud quantize .*3band.onnx"):
        load_model(path, precision="int8")
    made = variant.make_variant(project, path, "int8")
    for named, precision in ((path, "int8"), (made.path, "int8"), (made.path, None)):
        model = load_model(named, precision=precision)
        assert (model.path, model.title) == (made.path, "3band, from a file, int8")
    assert load_model(path).path == load_model(path, precision="float32").path == path
    for wrong in ("float32", "float16"):
        with pytest.raises(ModelError, match=f"has precision int8, not {wrong}; give the float32 file"):
            load_model(made.path, precision=wrong)


def test_load_model_refuses_variant_of_another_model(project: Project) -> None:
    path = project.model("3band")
    variant.make_variant(project, path, "int8")
    graph = onnx.load(path)
    contract = Model.load(path).contract.replace(weights="1" * 64)
    onnx.helper.set_model_props(graph, contract.to_metadata())
    onnx.save(graph, path)
    with pytest.raises(ModelError, match=r"is not the int8 variant of 3band\.onnx; run talud quantize"):
        load_model(path, precision="int8")


@pytest.mark.slow
def test_variant_supports_subsets_with_its_own_scores(project: Project, tmp_path: Path) -> None:
    path = project.model("3band")
    original = Model.load(path).contract
    new = zip(original.input.bands, ("red", "green", "vv_pre"), ("optical", "optical", "sar"), strict=True)
    changed = [band.model_dump() | {"name": name, "group": group} for band, name, group in new]
    groups = [("optical", "sar"), ("optical",), ("sar",)]
    subsets = [
        {"groups": one, "precision": 0.1, "recall": 0.1, "f1": 0.1, "supported": one != ("sar",)} for one in groups
    ]
    contract = original.replace(bands=changed, subsets=subsets, required_groups=("optical",))
    export.save_model(onnx.load(path), contract, path)
    with open_raster(project.stack("basin")) as stack:
        values = stack.read()
    bands = ("red", "green", "vv_pre")
    write_stack(project.stack("basin"), values, bands)
    made = variant.make_variant(project, path, "int8")
    assert [(one.groups, one.supported) for one in made.contract.input.subsets] == [
        (("optical", "sar"), True), (("optical",), True), (("sar",), False),
    ]  # fmt: skip
    assert made.contract.input.subsets[0].f1 not in (0.1, 0)

    values[2] = np.nan
    full = write_stack(tmp_path / "full.tif", values, bands)
    part = write_stack(tmp_path / "part.tif", values[:2], bands[:2])
    loaded = Model.load(made.path)
    for raster, tile in ((full, 32), (part, None)):
        predict(loaded, raster, tmp_path / raster.stem, MapOptions(tile=tile))
    maps = [rasterio.open(tmp_path / name / "probability.tif").read(1) for name in ("full", "part")]
    np.testing.assert_array_equal(maps[0], maps[1])
    mapped = np.isfinite(maps[1])
    np.testing.assert_array_equal(mapped, np.isfinite(values[:2]).all(axis=0))
    exact = Model.load(path).probability(values)
    assert np.abs(maps[1] - exact)[mapped].mean() < 0.02
