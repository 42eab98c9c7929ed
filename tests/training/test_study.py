"""Tests of complete studies on a small synthetic project."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import onnx
import pytest
import rasterio
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.windows import Window
from scipy.special import expit

import killed_study
from command_line import Run
from onnx_writer import to_onnx
from stack_files import window_probabilities
from talud import metrics
from talud.contract import Contract
from talud.data.patches import read_patches, split_blocks
from talud.engine.model_file import weights_digest
from talud.engine.runtime import Model
from talud.errors import ParamsError, RegistryError, StudyError, TaludWarning
from talud.files import md5
from talud.grid import Grid
from talud.params import Augmentation, DroppingOptions, Recipe, TrainingOptions
from talud.project import Project
from talud.raster import Layout, open_raster, write_cog
from talud.registry import Store
from talud.training import checkpoint, export, study
from talud.training.calibration import compute_logits
from talud.training.checkpoint import Epoch, TrialState, trial_key
from talud.training.dataset import Dataset
from talud.training.search import Hyperparameters, find_search, hyperparameter_sets, recorded_hyperparameters
from talud.training.trial import TrialConfig
from talud.training.trial_runner import TrialResult
from talud.versions import VERSIONS

PARAMS = {
    "seed": 7,
    "areas": {"basin": {"role": "training", "folder": "data/basin"}},
    "band_sets": {"both": ["slope", "red"], "more": ["red", "near_infrared"]},
    "stack": {},
    "split": {"block": 32, "patch": 16, "stride": 16},
    "training": {"depth": 1},
    "search": "small",
    "searches": {
        "small": {"filters": [2], "learning_rate": [0.01, 0.001], "batch_size": [8], "epochs": 2},
        "partly_diverging": {"filters": [2], "learning_rate": [1.0e38, 0.01], "batch_size": [8], "epochs": 1},
        "diverging": {"filters": [2], "learning_rate": [1.0e38], "batch_size": [8], "epochs": 1},
    },
}
# Most of a short trial's time goes into tracing its network, so tests take as few trials as their assertion needs.
ONE_EPOCH = {"small": {"filters": [2], "learning_rate": [0.01], "batch_size": [8], "epochs": 1}}


def make_stack(project: Project, area: str, slope: str | None = "zevenbergen_thorne") -> None:
    """Write a synthetic stack, its mask and its record, as talud stack does."""
    generator = np.random.default_rng(1)
    mask = np.zeros((160, 160), np.uint8)
    for row, column in generator.integers(0, 150, (60, 2)):
        mask[row : row + 8, column : column + 6] = 1
    stack = generator.normal(30, 5, (2, 160, 160)).astype(np.float32)
    stack[0] = stack[0] * 3 + 60 * mask
    stack[:, 40:60, 70:90] = np.nan
    grid = Grid(CRS.from_epsg(32618), from_origin(400_000, 650_000, 12.5, 12.5), 160, 160)
    tags = {"TALUD_RESOLUTION": "12.5"} | ({"TALUD_SLOPE": slope} if slope else {})
    layout = Layout("float32", np.nan, ("red", "slope"), ("DN", "degree"), tags)
    with write_cog(project.stack(area), grid, layout) as writer:
        writer.write(stack)
    with write_cog(project.mask(area), grid, Layout("uint8", None, ("landslide",))) as writer:
        writer.write(mask, 1)
    record = {"stack_md5": md5(project.stack(area)), "mask_md5": md5(project.mask(area))}
    project.stack_record(area).parent.mkdir(parents=True, exist_ok=True)
    project.stack_record(area).write_text(json.dumps(record))


def make_project(root: Path, **changes: object) -> Project:
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, **changes}, sort_keys=False))
    project = Project.find(root)
    for area in project.params.areas:
        make_stack(project, area)
    return project


@pytest.fixture(scope="module", autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("study") / "project")


@pytest.fixture(scope="module")
def completed_study(project: Project) -> tuple[Project, study.Study, list[study.StudyProgress]]:
    seen: list[study.StudyProgress] = []
    return project, study.run(project, "both", on_progress=seen.append), seen


def mlflow_client(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.root}/mlflow.db")


def runs(project: Project) -> list[MlflowRun]:
    store = mlflow_client(project)
    experiment = store.get_experiment_by_name("landslide-unet")
    return store.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])


def statuses(project: Project) -> list[str]:
    return sorted(run.info.status for run in runs(project))


def contract_of(path: Path) -> Contract:
    return Contract.from_metadata({item.key: item.value for item in onnx.load(path).metadata_props}, str(path))


def test_study_writes_table_of_trials(completed_study: tuple[Project, study.Study, list[study.StudyProgress]]) -> None:
    project, result, seen = completed_study
    table = json.loads(project.trials("both").read_text())
    assert [trial["learning_rate"] for trial in table["trials"]] == [0.01, 0.001]
    best = max(table["trials"], key=lambda trial: trial["scores"]["f1"])
    assert table["best"] == best["run_id"] == result.best.run_id
    assert table["failed"] == []
    assert [(one.trial, one.trials, one.epoch, one.done, one.total) for one in seen] == [
        (1, 2, 1, 1, 4), (1, 2, 2, 2, 4), (2, 2, 1, 3, 4), (2, 2, 2, 4, 4),
    ]  # fmt: skip


def test_contract_describes_training_data(
    completed_study: tuple[Project, study.Study, list[study.StudyProgress]],
) -> None:
    project, result, _ = completed_study
    contract = contract_of(project.model("both"))
    assert contract.input.band_names == ("slope", "red")
    assert [band.unit for band in contract.input.bands] == ["degree", "DN"]
    assert (contract.input.bands[0].lowest, contract.input.bands[0].highest) == (0, 90)
    red = contract.input.bands[1]
    span = red.maximum - red.minimum
    assert (red.lowest, red.highest) == pytest.approx((red.minimum - span, red.maximum + span))
    assert contract.input.required_groups == ("terrain", "optical")
    assert contract.input.differences == ()  # slope and red have different units
    assert (contract.input.pixel_size, contract.input.halo, contract.input.alignment) == (12.5, 10, 2)
    assert set(contract.measured.halo_errors) == {0, 2, 4, 6, 8}
    assert contract.input.stack == {"slope": "zevenbergen_thorne", "resolution": "12.5"}
    assert contract.origin.run_id == result.best.run_id
    assert contract.origin.areas == ("basin",)
    assert contract.origin.commit == "unknown"  # the project is not in a Git repository


def test_contract_statistics_are_of_training_patches_only(
    completed_study: tuple[Project, study.Study, list[study.StudyProgress]],
) -> None:
    project, _, _ = completed_study
    options, seed = project.params.split, project.params.seed
    blocks = split_blocks(project.mask("basin"), options, seed)
    training = [block for block in blocks if block.part == "training"]
    with rasterio.open(project.mask("basin")) as mask:
        truth = np.concatenate([mask.read(1, window=block.window).ravel() for block in training])
    share = (truth == 1).sum() / (truth != 255).sum()
    assert contract_of(project.model("both")).origin.landslide_share == pytest.approx(share)
    patches = read_patches(project.stack("basin"), project.mask("basin"), ("slope", "red"), training, options, seed)
    for index, band in enumerate(contract_of(project.model("both")).input.bands):
        values = patches.stack[..., index].astype(np.float64)
        assert band.mean == pytest.approx(np.nanmean(values))
        assert band.deviation == pytest.approx(np.nanstd(values))
        valid = values[~np.isnan(values)]
        assert (band.edges[0], band.edges[-1]) == (band.minimum, band.maximum) == (valid.min(), valid.max())
        counted = [np.mean((valid >= low) & (valid < high)) for low, high in pairwise(band.edges)]
        counted[-1] += np.mean(valid == band.maximum)
        assert band.shares == pytest.approx(counted)


def test_contract_threshold_and_scores_match_the_file(
    completed_study: tuple[Project, study.Study, list[study.StudyProgress]],
) -> None:
    project, _, _ = completed_study
    model = Model.load(project.model("both"))
    blocks = split_blocks(project.mask("basin"), project.params.split, project.params.seed)
    windows = [block.window for block in blocks if block.part == "validation"]
    counts = {step: metrics.Confusion() for step in range(1, 100)}
    with open_raster(project.mask("basin")) as mask:
        for window, found in zip(windows, window_probabilities(model, project.stack("basin"), windows), strict=True):
            truth = mask.read(1, window=window)
            for step in counts:
                counts[step] += metrics.confusion(found >= np.float32(step / 100), truth, np.isfinite(found))
    chosen = counts[round(model.contract.measured.threshold * 100)]
    assert chosen.f1 >= max(one.f1 for one in counts.values()) - 0.005  # see metrics.best_threshold
    assert model.contract.measured.scores == pytest.approx(chosen.scores())


def export_best_trial(
    project: Project, result: study.Study, path: Path, sign: int = 1, **training: bool
) -> tuple[keras.Model, Contract]:
    """Export the best trial again; return its network and the new contract.

    A sign of -1 inverts the logits of the network.
    """
    options = project.params.training.model_copy(update=training)
    changed = replace(project, params=project.params.model_copy(update={"training": options}))
    dataset = Dataset.load(changed, "both")
    model = study._best_model(changed, dataset, result.best)
    model.layers[-1].set_weights([sign * weights for weights in model.layers[-1].get_weights()])
    raw = keras.models.clone_model(model)
    raw.set_weights(model.get_weights())
    network = TrialConfig.of(changed, result.best.hyperparameters, dataset.bands).network
    return raw, export.export_model(model, dataset, changed, export.ExportOrigin(network, "both", "c", "r", {}), path)


@pytest.mark.slow
def test_file_applies_the_calibration_of_its_contract(
    completed_study: tuple[Project, study.Study, list[study.StudyProgress]], tmp_path: Path
) -> None:
    project, result, _ = completed_study
    raw, contract = export_best_trial(project, result, tmp_path / "again.onnx")
    line, model = contract.measured.calibration, Model.load(project.model("both"))
    assert line is not None
    assert model.contract.measured.calibration == line
    assert line.slope != 1
    assert line.error_after < line.error_before
    for patch in Dataset.load(project, "both").validation.stack:
        stack = np.ascontiguousarray(np.moveaxis(patch, -1, 0))
        expected = expit(line.slope * compute_logits(raw, stack, alignment=2) + line.offset)
        assert model.run(stack) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_calibration_keeps_f1_and_contract_counts_match(
    completed_study: tuple[Project, study.Study, list[study.StudyProgress]], tmp_path: Path
) -> None:
    project, result, _ = completed_study
    _, plain = export_best_trial(project, result, tmp_path / "plain.onnx", calibrate=False)
    scaled = contract_of(project.model("both"))
    assert scaled.measured.scores["f1"] == pytest.approx(
        plain.measured.scores["f1"], abs=0.02
    )  # thresholds are hundredths
    for contract in (plain, scaled):
        known = contract.measured.validation
        assert known is not None
        counts = metrics.Confusion(known.tp, known.fp, known.fn, known.tn)
        assert counts.scores() == contract.measured.scores
        assert known.blocks == 5


@pytest.mark.slow
def test_export_without_calibration_keeps_trained_weights(
    completed_study: tuple[Project, study.Study, list[study.StudyProgress]], tmp_path: Path
) -> None:
    project, result, _ = completed_study
    raw, contract = export_best_trial(project, result, tmp_path / "plain.onnx", calibrate=False)
    written = onnx.load(tmp_path / "plain.onnx")
    assert contract.measured.calibration is None
    assert written.graph == to_onnx(raw).graph
    assert contract.origin.weights == weights_digest(to_onnx(raw))


@pytest.mark.slow
def test_calibration_is_declined_for_inverted_logits(
    completed_study: tuple[Project, study.Study, list[study.StudyProgress]], tmp_path: Path
) -> None:
    project, result, _ = completed_study
    raw, contract = export_best_trial(project, result, tmp_path / "turned.onnx", sign=-1)
    line = contract.measured.calibration
    assert line is not None
    assert (line.slope, line.offset) == (1, 0)
    assert "higher logits do not mean more landslide" in line.declined
    assert onnx.load(tmp_path / "turned.onnx").graph == to_onnx(raw).graph


@pytest.mark.slow
def test_subset_scores_use_calibrated_file_and_threshold(
    completed_study: tuple[Project, study.Study, list[study.StudyProgress]], tmp_path: Path
) -> None:
    project, result, _ = completed_study
    _, contract = export_best_trial(
        with_dropping(project, groups={"terrain": 0.5}, tolerance=1), result, tmp_path / "any.onnx"
    )
    shipped, plain = Model.load(tmp_path / "any.onnx"), contract_of(project.model("both"))
    assert shipped.contract == contract
    assert contract.measured.calibration == plain.measured.calibration is not None
    assert (contract.measured.threshold, contract.measured.scores) == (plain.measured.threshold, plain.measured.scores)
    found = {tuple(map(str, one.groups)): one for one in contract.input.subsets}
    assert {groups: one.supported for groups, one in found.items()} == {
        ("terrain", "optical"): True, ("terrain",): False, ("optical",): True,
    }  # fmt: skip
    assert contract.input.required_groups == ("optical",)
    assert found["terrain", "optical"].f1 == pytest.approx(contract.measured.scores["f1"])
    counts = metrics.Confusion()
    with open_raster(project.stack("basin")) as stack, open_raster(project.mask("basin")) as mask:
        for block in split_blocks(project.mask("basin"), project.params.split, project.params.seed):
            if block.part == "validation":
                red, slope = stack.read(window=block.window)
                alone = shipped.probability(np.stack([np.full_like(slope, np.nan), red]))
                valid = np.isfinite(red) & np.isfinite(slope)
                counts += metrics.confusion(
                    alone >= contract.measured.threshold, mask.read(1, window=block.window), valid
                )
    assert found["optical",].f1 == pytest.approx(counts.f1)


def with_dropping(project: Project, **options: object) -> Project:
    """Return the project with a recipe that drops band groups."""
    recipes = {"study": Recipe(dropping=DroppingOptions.model_validate(options))}
    return replace(project, params=project.params.model_copy(update={"recipes": recipes}))


def test_trial_key_covers_dropping_but_not_its_tolerance(project: Project) -> None:
    (hyperparameters,) = hyperparameter_sets(find_search(project.params, "diverging"), seed=1)
    lost = {"groups": {"terrain": 0.5}}
    often, seldom = with_dropping(project, **lost), with_dropping(project, groups={"terrain": 0.1})
    strict = with_dropping(project, **lost, tolerance=0.01)
    keys = [trial_key(one, ("slope", "red"), "v", hyperparameters) for one in (project, often, seldom, strict)]
    assert len(set(keys)) == 3
    assert keys[1] == keys[3]
    found = recorded_hyperparameters(
        with_dropping(project, **lost, clouds=0.25).params, hyperparameters, ("slope", "red")
    )
    assert found["dropping"] == "terrain 0.5, clouds 0.25"
    assert "dropping" not in recorded_hyperparameters(project.params, hyperparameters, ("slope", "red"))


def test_trial_key_does_not_cover_calibration(project: Project) -> None:
    (hyperparameters,) = hyperparameter_sets(find_search(project.params, "diverging"), seed=1)
    off = project.params.training.model_copy(update={"calibrate": False})
    other = replace(project, params=project.params.model_copy(update={"training": off}))
    deeper = project.params.training.model_copy(update={"depth": 2})
    changed = replace(project, params=project.params.model_copy(update={"training": deeper}))
    key = trial_key(project, ("red",), "v", hyperparameters)
    assert trial_key(other, ("red",), "v", hyperparameters) == key != trial_key(changed, ("red",), "v", hyperparameters)


def test_trial_keys_of_earlier_versions_stay_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys were written before the recipe had light, hue, unchanged, shrink and encoder_rate."""
    monkeypatch.setitem(VERSIONS, "data", 1)
    monkeypatch.setitem(VERSIONS, "training", 1)

    def key(recipe: Recipe) -> str:
        params = SimpleNamespace(training=TrainingOptions(depth=1), split_hyperparameters={}, chosen_recipe=recipe)
        return trial_key(SimpleNamespace(params=params), ["red"], "v", Hyperparameters(4, 1e-2, 8, 15, None))

    earlier = Recipe(schedule="cosine", augmentation=Augmentation(gain=0.3))
    assert key(Recipe()) == "f1a18980dac3121b5dbe012d61fb0d45"
    assert key(earlier) == "7f9ec9fa9dfba0660d51fd4d6dd72489"
    newer = [{"light": 0.1}, {"hue": 0.1}, {"shrink": 0.1}, {"light": 0.1, "unchanged": 0.1}]
    changed = [key(Recipe(augmentation=Augmentation(**options))) for options in newer]
    assert len({key(Recipe()), key(Recipe(encoder_rate=0.5)), *changed}) == 6


def test_study_logs_runs_of_trials(completed_study: tuple[Project, study.Study, list[study.StudyProgress]]) -> None:
    project, result, _ = completed_study
    store = mlflow_client(project)
    parent = store.get_run(result.parent_run_id)
    children = store.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.parent_run_id}'")
    version = contract_of(project.model("both")).origin.data_version
    assert len(children) == 2
    for run in children:
        assert run.info.status == "FINISHED"
        assert run.data.params["filters"] == "2"
        assert run.data.params["split_block"] == "32"
        assert run.data.tags["data_version"] == version
        assert run.data.tags["split_validation"].startswith("5 blocks, 20 patches, ")
        assert [one.step for one in store.get_metric_history(run.info.run_id, "validation/f1")] == [1, 2]
        assert run.inputs.dataset_inputs[0].dataset.digest == version


def test_data_version_changes_with_the_masks(tmp_path: Path) -> None:
    project = make_project(tmp_path / "one")
    record = json.loads(project.stack_record("basin").read_text())
    before = Dataset.load(project, "both").version
    project.stack_record("basin").write_text(json.dumps({**record, "mask_md5": "0" * 32, "area": "basin"}))
    assert Dataset.load(project, "both").version != before


def test_value_ranges_include_test_blocks_statistics_do_not(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    blocks = split_blocks(project.mask("basin"), project.params.split, project.params.seed)
    window = next(block.window for block in blocks if block.part == "test")
    with rasterio.open(project.stack("basin"), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as stack:
        red = stack.descriptions.index("red") + 1
        stack.write(np.full((1, 1), 900, np.float32), red, window=Window(window.col_off, window.row_off, 1, 1))
    dataset = Dataset.load(project, "both")
    assert dataset.value_ranges[1, 1] == 900
    assert dataset.statistics.maximum[1] < 900


def test_areas_with_different_processing_are_refused(tmp_path: Path) -> None:
    areas = {name: {"role": "training", "folder": name} for name in ("basin", "valley")}
    project = make_project(tmp_path / "two", areas=areas)
    one = Dataset.load(make_project(tmp_path / "one"), "both")
    two = Dataset.load(project, "both")
    assert len(two.training) == 2 * len(one.training)
    assert two.counts(project.params.split)["test_blocks"] == 2 * one.counts(project.params.split)["test_blocks"] == 10
    make_stack(project, "valley", slope=None)  # as in earlier releases, which did not record it
    with pytest.raises(StudyError, match=r"'basin' and 'valley' differ in slope: zevenbergen_thorne and none"):
        Dataset.load(project, "both")


def test_landslides_under_invalid_pixels_are_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path / "cloudy")
    with open_raster(project.stack("basin")) as dataset:
        grid, stack = Grid.of(dataset), dataset.read()
    with open_raster(project.mask("basin")) as dataset:
        stack[0][dataset.read(1) == 1] = np.nan
    with write_cog(project.stack("basin"), grid, Layout("float32", np.nan, ("red", "slope"))) as writer:
        writer.write(stack)
    with pytest.raises(StudyError, match="training blocks hold no landslide where all of slope, red are valid"):
        Dataset.load(project, "both")


@pytest.mark.slow
def test_study_records_diverged_trial_and_continues(tmp_path: Path) -> None:
    project = make_project(tmp_path / "partly_diverging")
    result = study.run(project, "both", search="partly_diverging")
    assert result.best.hyperparameters.learning_rate == 0.01
    table = json.loads(project.trials("both").read_text())
    assert len(table["trials"]) == len(table["failed"]) == 1
    assert "not a number" in table["failed"][0]["reason"]
    assert mlflow_client(project).get_run(table["failed"][0]["run_id"]).info.status == "FAILED"


@pytest.mark.slow
def test_failed_study_keeps_earlier_results(tmp_path: Path) -> None:
    project = make_project(tmp_path / "diverging")
    project.model("both").parent.mkdir()
    project.model("both").write_text("earlier")
    with pytest.raises(StudyError, match=r"all 1 trials failed.*not a number"):
        study.run(project, "both", search="diverging")
    assert project.model("both").read_text() == "earlier"
    assert [path.name for path in project.model("both").parent.iterdir()] == ["both.onnx"]


@pytest.mark.slow
def test_study_stops_after_too_many_failures(tmp_path: Path) -> None:
    search = {"filters": [2], "learning_rate": [1.0e38, 1.1e38, 1.2e38, 0.01], "batch_size": [8], "epochs": 1}
    project = make_project(tmp_path / "failing", searches={"small": {**search, "failures": 1}})
    with pytest.raises(StudyError, match=r"2 of 4 trials failed, more than the 1 that `failures`.*not a number"):
        study.run(project, "both")
    assert statuses(project) == ["FAILED", "FAILED", "FAILED"]  # the study and two trials; the others did not start


@pytest.mark.slow
def test_study_writes_no_file_that_differs_from_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "differs", searches=ONE_EPOCH)
    written = export.to_onnx

    def export_with_fault(model: object) -> onnx.ModelProto:
        graph = written(model)
        (bias,) = (constant for constant in graph.graph.initializer if constant.name == "encoder_0_first_bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
        return graph

    monkeypatch.setattr(export, "to_onnx", export_with_fault)
    with pytest.raises(StudyError, match="differs from the Keras model"):
        study.run(project, "both")
    assert not list(project.model("both").parent.iterdir())


def test_study_names_missing_bands_search_and_stacks(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    with pytest.raises(StudyError, match=r"basin\.tif: has no band near_infrared; it holds red, slope"):
        study.run(project, "more")
    with pytest.raises(ParamsError, match=r"no search 'none'.*small, partly_diverging, diverging"):
        study.run(project, "both", search="none")
    project.stack("basin").unlink()
    with pytest.raises(StudyError, match="run talud stack basin"):
        study.run(project, "both")
    project.stack_record("basin").unlink()
    with pytest.raises(StudyError, match="run talud stack basin"):
        study.run(project, "both")


def test_patch_size_unsuited_to_depth_is_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", split={"block": 32, "patch": 18}, training={"depth": 2})
    with pytest.raises(ParamsError, match=r"split.patch is 18 pixels.*multiple of 4"):
        study.run(project, "both")


@pytest.mark.slow
def test_train_prints_only_progress_and_result(tmp_path: Path, talud: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path / "project", searches=ONE_EPOCH)
    command = [sys.executable, "-m", "talud.cli.main", "train", "both"]
    done = subprocess.run(command, cwd=tmp_path / "project", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("train both: ") for line in done.stderr.splitlines()), done.stderr
    assert done.stdout.splitlines()[-1].startswith("models/both.onnx")
    monkeypatch.chdir(tmp_path / "project")
    assert talud("train", "none") == (1, "", "talud: no band set 'none' in params.yaml; it has: both, more\n")


def test_table_matches_store_and_runs_have_artifacts(
    completed_study: tuple[Project, study.Study, list[study.StudyProgress]],
) -> None:
    project, result, _ = completed_study
    store, table = mlflow_client(project), json.loads(project.trials("both").read_text())
    (experiment,) = store.search_experiments()
    runs = store.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{result.parent_run_id}'")
    assert {run.info.run_id for run in runs} == {trial["run_id"] for trial in table["trials"] + table["failed"]}
    for run_id, files in ((result.parent_run_id, ["examples.png", "trials.html"]), (table["best"], ["examples.png"])):
        assert [file.path for file in store.list_artifacts(run_id)] == files


# Interrupted studies.

LONG_SEARCH = {"filters": [2, 3], "learning_rate": [0.01], "batch_size": [8], "epochs": 4}


def run_and_kill(project: Project, moment: str, at: int) -> int:
    """Run a study in a process that kills itself at a moment; return its exit code."""
    Store.open(project.root, create=True)  # here its tables are copied
    started = killed_study.start(project.root, moment, at)
    started.join()
    return started.exitcode


@pytest.fixture(scope="module")
def uninterrupted_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the project of a longer study that was not interrupted."""
    project = make_project(tmp_path_factory.mktemp("uninterrupted") / "project", searches={"small": LONG_SEARCH})
    study.run(project, "both")
    return project


def learning_curves(project: Project) -> dict[str, list[tuple[int, float]]]:
    store = mlflow_client(project)
    return {
        run.info.run_name: sorted(
            (one.step, one.value) for one in store.get_metric_history(run.info.run_id, "validation/loss")
        )
        for run in runs(project)
        if "mlflow.parentRunId" in run.data.tags
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [
        [("epoch", 1), ("epoch", 6)],
        [("write", 2), ("write", 3), ("send", 1)],
        [("scores", 1), ("scores", 2), ("export", 1)],
    ],
)
def test_killed_study_resumes_to_the_same_results(
    uninterrupted_project: Project, tmp_path: Path, kills: list[tuple[str, int]]
) -> None:
    project = make_project(tmp_path / "project", searches={"small": LONG_SEARCH})
    for moment, at in kills:
        assert run_and_kill(project, moment, at) == -9
    study.run(project, "both")
    assert len(runs(project)) == 3  # the study and its two trials
    assert set(statuses(project)) == {"FINISHED"}
    assert learning_curves(project) == learning_curves(uninterrupted_project)
    first, second = (contract_of(one.model("both")) for one in (project, uninterrupted_project))
    assert first.origin.weights == second.origin.weights
    assert first.origin.data_version == second.origin.data_version
    assert first.measured.threshold == second.measured.threshold
    tables = [json.loads(one.trials("both").read_text())["trials"] for one in (project, uninterrupted_project)]
    for trial in (*tables[0], *tables[1]):
        del trial["run_id"], trial["seconds"]
    assert tables[0] == tables[1]


def crash_at(path: Path) -> None:
    """Kill a process while it runs a trial."""
    process = os.fork()  # it computes nothing: its parent's threads are not needed
    if process == 0:
        with checkpoint.counting_crashes(path):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


@pytest.mark.slow
def test_crashes_are_counted_until_next_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "trial.npz"
    for number in range(3):
        assert checkpoint.crash_count(path) == number
        with suppress(KeyboardInterrupt), checkpoint.counting_crashes(path):
            raise KeyboardInterrupt
        with suppress(StudyError), checkpoint.counting_crashes(path):
            raise StudyError("the loss is not a number")
        assert checkpoint.crash_count(path) == number
        crash_at(path)
    checkpoint.write(path, TrialState())
    assert checkpoint.crash_count(path) == 0
    crash_at(path)
    assert checkpoint.crash_count(path) == 1
    with checkpoint.counting_crashes(path):
        checkpoint.write(path, TrialState())
    assert [file.name for file in path.parent.iterdir()] == ["trial.npz"]
    checkpoint.crash_file(path).write_text("no number")
    assert checkpoint.crash_count(path) == 0


@pytest.mark.slow
def test_trial_with_three_crashes_is_recorded_as_failed(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    dataset = Dataset.load(project, "both")
    hyperparameters, _ = hyperparameter_sets(find_search(project.params, "small"), 7)
    path = project.checkpoint(trial_key(project, dataset.bands, dataset.version, hyperparameters))
    for _ in range(3):
        crash_at(path)
    result, seen = run_and_list_epochs(project)
    assert seen == ["2 filters · lr 0.001 · batch 8"] * 2
    assert result.best.hyperparameters.learning_rate == 0.001
    (failed,) = json.loads(project.trials("both").read_text())["failed"]
    assert re.match(
        r"its process was killed 3 times between epoch 0 and the next checkpoint, probably out of memory; "
        r"to save memory, use a smaller batch_size or .*; to retry, delete checkpoints/\w+\.kills$",
        failed["reason"],
    )
    assert mlflow_client(project).get_run(failed["run_id"]).info.status == "FAILED"
    assert run_and_list_epochs(project)[1] == []  # a restarted study does not run it either
    checkpoint.crash_file(path).unlink()
    assert run_and_list_epochs(project)[1] == ["2 filters · lr 0.01 · batch 8"] * 2


def test_pruner_keeps_only_best_weights_and_reads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path)
    done = []
    for number, f1 in enumerate((0.3, 0.5, 0.4, 0.6, 0.2)):
        scores = {"val_precision": f1, "val_recall": f1, "val_f1": f1, "val_iou": f1}
        arrays = [np.full(3, number)]
        state = TrialState((Epoch(1, 0, scores),), 1, arrays, arrays, arrays, weight_count=3)
        hyperparameters = replace(hyperparameter_sets(find_search(project.params, "small"), 7)[0], filters=number + 1)
        done.append(TrialResult("run", hyperparameters, f"{number}", state.without_arrays, state.stored_arrays))
        checkpoint.write(project.checkpoint(f"{number}"), state)
    calls = []

    def record_call(name: str, former: Any, path: Path, *state: TrialState) -> TrialState | None:
        calls.append((name, path.stem))
        return former(path, *state)

    for name in ("read", "write"):
        monkeypatch.setattr(checkpoint, name, partial(record_call, name, getattr(checkpoint, name)))
    pruner = study._CheckpointPruner(project)
    for number in range(1, 6):
        pruner.prune_weights(done[:number])
    read = [key for name, key in calls if name == "read"]
    written = [key for name, key in calls if name == "write"]
    assert read == ["0", "1", "3"]  # the best so far
    assert sorted(written) == ["0", "0", "1", "1", "2", "3", "4"]
    kept = [checkpoint.read(project.checkpoint(result.key)) for result in done]
    assert [state.stored_arrays for state in kept] == [set(), set(), set(), {"best"}, set()]
    assert kept[3].best[0].tolist() == [3, 3, 3]
    assert [state.without_arrays for state in kept] == [result.state for result in done]

    calls.clear()
    second_pruner = study._CheckpointPruner(project)
    for number in range(1, 6):
        second_pruner.prune_weights(
            [replace(one, stored_arrays=state.stored_arrays) for one, state in zip(done, kept, strict=True)][:number]
        )
    assert calls == []


def run_and_list_epochs(project: Project, **options: str) -> tuple[study.Study, list[str]]:
    """Run a study; return it with the name of the trial of each trained epoch."""
    seen: list[study.StudyProgress] = []
    return study.run(project, "both", on_progress=seen.append, **options), [one.name for one in seen]


@pytest.mark.slow
def test_trial_runs_again_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "project", searches=ONE_EPOCH)
    first, seen = run_and_list_epochs(project)
    assert len(seen) == 1
    again, seen = run_and_list_epochs(project)
    assert (again.best.run_id, again.parent_run_id, seen) == (first.best.run_id, first.parent_run_id, [])
    assert len(runs(project)) == 2

    wider = {"small": {**ONE_EPOCH["small"], "learning_rate": [0.01, 0.003]}}
    (project.root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "searches": wider}))
    project = Project.find(project.root)
    _, seen = run_and_list_epochs(project)
    assert seen == ["2 filters · lr 0.003 · batch 8"]  # the other was finished in the earlier study

    record = json.loads(project.stack_record("basin").read_text())
    project.stack_record("basin").write_text(json.dumps({**record, "mask_md5": "0" * 32}))
    assert len(run_and_list_epochs(project)[1]) == 2
    monkeypatch.setitem(VERSIONS, "training", VERSIONS["training"] + 1)
    assert len(run_and_list_epochs(project)[1]) == 2


@pytest.mark.slow
def test_best_trial_with_deleted_weights_is_trained_again(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    first = study.run(project, "both")
    (worse,) = (result for result in first.results if result is not first.best)
    alone = {"small": {**PARAMS["searches"]["small"], "learning_rate": [worse.hyperparameters.learning_rate]}}
    (project.root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "searches": alone}))
    second = study.run(Project.find(project.root), "both")
    assert second.best.state.scores == worse.state.scores
    assert contract_of(project.model("both")).origin.run_id == second.best.run_id


@pytest.mark.slow
def test_second_study_of_same_band_set_is_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", searches=ONE_EPOCH)

    def start_second_study(_: study.StudyProgress) -> None:
        with pytest.raises(StudyError, match="another process trains 'both'"):
            study.run(project, "both")

    study.run(project, "both", on_progress=start_second_study)
    assert len(runs(project)) == 2


@pytest.mark.slow
def test_successive_halving_stops_worse_trials(tmp_path: Path) -> None:
    search = {"filters": [2], "learning_rate": [0.01, 1.0e-9, 0.003, 1.0e-8], "batch_size": [8], "epochs": 4}
    halving = {**search, "method": "halving", "first_epochs": 1, "factor": 2}
    project = make_project(tmp_path / "project", searches={"small": halving})
    result, seen = run_and_list_epochs(project)
    epochs = {result.hyperparameters.learning_rate: len(result.state.epochs) for result in result.results}
    assert sorted(epochs.values()) == [1, 1, 2, 4]
    assert len(seen) == 4 + 2 + 2
    assert epochs[1.0e-9] == epochs[1.0e-8] == 1
    table = json.loads(project.trials("both").read_text())
    assert {trial["learning_rate"]: trial["epochs_run"] for trial in table["trials"]} == epochs
    assert set(statuses(project)) == {"FINISHED"}
    again, seen = run_and_list_epochs(project)
    assert (again.best.run_id, seen) == (result.best.run_id, [])


@pytest.mark.slow
def test_open_runs_of_a_killed_study_are_ended(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    assert run_and_kill(project, "epoch", 1) == -9
    assert statuses(project) == ["RUNNING", "RUNNING"]
    changed = {**PARAMS, "seed": 8}
    (project.root / "params.yaml").write_text(yaml.safe_dump(changed))
    with pytest.warns(
        TaludWarning, match=r"study of both \(search small\) .* is unfinished, .* its trials start again"
    ):
        study.run(Project.find(project.root), "both")
    assert statuses(project) == ["FINISHED", "FINISHED", "FINISHED", "KILLED", "KILLED"]


@pytest.mark.slow
def test_unwritable_artifacts_do_not_repeat_training(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", searches=ONE_EPOCH)
    (project.root / "mlartifacts").write_text("in the way")
    with pytest.raises(RegistryError, match=r": .*mlartifacts.*; nothing is lost, try again$"):
        study.run(project, "both")
    assert not project.model("both").exists()
    (project.root / "mlartifacts").unlink()
    assert run_and_list_epochs(project)[1] == []
    assert set(statuses(project)) == {"FINISHED"}


@pytest.mark.slow
def test_trial_stopped_by_halving_resumes_in_a_grid(uninterrupted_project: Project, tmp_path: Path) -> None:
    halving = {**LONG_SEARCH, "method": "halving", "first_epochs": 1, "factor": 2}
    project = make_project(tmp_path / "project", searches={"small": LONG_SEARCH, "halving": halving})
    study.run(project, "both", search="halving")
    study.run(project, "both", search="small")
    tables = [json.loads(one.trials("both").read_text())["trials"] for one in (project, uninterrupted_project)]
    assert [trial["scores"] for trial in tables[0]] == [trial["scores"] for trial in tables[1]]
    assert [trial["epochs_run"] for trial in tables[0]] == [4, 4]
    assert (
        contract_of(project.model("both")).origin.weights
        == contract_of(uninterrupted_project.model("both")).origin.weights
    )
