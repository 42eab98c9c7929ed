"""A whole study on a small synthetic project: files, contract, runs, and what happens when something fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
import rasterio
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.windows import Window
from scipy.special import expit

from stack_files import probabilities
from talud import metrics
from talud.contract import Contract
from talud.data.patches import read, split
from talud.engine.model_file import weights_digest
from talud.engine.runtime import Model
from talud.errors import ParamsError, RegistryError, StudyError, TaludWarning
from talud.files import md5
from talud.grid import Grid
from talud.params import DroppingOptions, Recipe
from talud.project import Project
from talud.raster import Layout, open_raster, write_cog
from talud.training import checkpoint, export, study
from talud.training.calibration import compute_logits
from talud.training.checkpoint import Epoch, TrialState, trial_key
from talud.training.dataset import Dataset
from talud.training.onnx_graph import to_onnx
from talud.training.search import find_search, hyperparameter_sets, recorded_hyperparameters
from talud.training.trial_runner import TrialResult
from talud.versions import VERSIONS

PARAMS = {
    "seed": 7,
    "areas": {"hill": {"role": "training", "folder": "data/hill"}},
    "band_sets": {"both": ["slope", "red"], "more": ["red", "near_infrared"]},
    "stack": {},
    "split": {"block": 32, "patch": 16, "stride": 16},
    "training": {"depth": 1},
    "search": "small",
    "searches": {
        "small": {"filters": [2], "learning_rate": [0.01, 0.001], "batch_size": [8], "epochs": 2},
        "partly": {"filters": [2], "learning_rate": [1.0e38, 0.01], "batch_size": [8], "epochs": 1},
        "hopeless": {"filters": [2], "learning_rate": [1.0e38], "batch_size": [8], "epochs": 1},
    },
}


def make_stack(project: Project, area: str, slope: str | None = "zevenbergen_thorne") -> None:
    """Write a synthetic stack, mask and record as talud stack does."""
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
def finished(project: Project) -> tuple[Project, study.Study, list[study.StudyProgress]]:
    seen: list[study.StudyProgress] = []
    return project, study.run(project, "both", on_progress=seen.append), seen


def client(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.root}/mlflow.db")


def runs(project: Project) -> list[Run]:
    store = client(project)
    experiment = store.get_experiment_by_name("landslide-unet")
    return store.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])


def statuses(project: Project) -> list[str]:
    return sorted(run.info.status for run in runs(project))


def contract_of(path: Path) -> Contract:
    return Contract.from_metadata({item.key: item.value for item in onnx.load(path).metadata_props}, str(path))


def test_the_table_of_trials(finished: tuple[Project, study.Study, list[study.StudyProgress]]) -> None:
    project, result, seen = finished
    table = json.loads(project.trials("both").read_text())
    assert [trial["learning_rate"] for trial in table["trials"]] == [0.01, 0.001]
    best = max(table["trials"], key=lambda trial: trial["scores"]["f1"])
    assert table["best"] == best["run_id"] == result.best.run_id
    assert table["failed"] == []
    assert [(one.trial, one.trials, one.epoch, one.done, one.total) for one in seen] == [
        (1, 2, 1, 1, 4), (1, 2, 2, 2, 4), (2, 2, 1, 3, 4), (2, 2, 2, 4, 4),
    ]  # fmt: skip


def test_the_contract_says_what_the_model_saw(finished: tuple[Project, study.Study, list[study.StudyProgress]]) -> None:
    project, result, _ = finished
    contract = contract_of(project.model("both"))
    assert contract.input.band_names == ("slope", "red")
    assert [band.unit for band in contract.input.bands] == ["degree", "DN"]
    assert (contract.input.bands[0].lowest, contract.input.bands[0].highest) == (0, 90)
    red = contract.input.bands[1]
    span = red.maximum - red.minimum
    assert (red.lowest, red.highest) == pytest.approx((red.minimum - span, red.maximum + span))
    assert contract.input.required_groups == ("terrain", "optical")
    assert contract.input.differences == ()  # slope and red have no unit in common
    assert (contract.input.pixel_size, contract.input.halo, contract.input.alignment) == (12.5, 10, 2)
    assert set(contract.measured.halo_errors) == {0, 2, 4, 6, 8}
    assert contract.input.stack == {"slope": "zevenbergen_thorne", "resolution": "12.5"}
    assert contract.origin.run_id == result.best.run_id
    assert contract.origin.areas == ("hill",)
    assert contract.origin.commit == "unknown"  # the project of this test is in no repository


def test_the_statistics_are_of_training_patches_alone(
    finished: tuple[Project, study.Study, list[study.StudyProgress]],
) -> None:
    project, _, _ = finished
    options, seed = project.params.split, project.params.seed
    blocks = split(project.mask("hill"), options, seed)
    training = [block for block in blocks if block.part == "training"]
    patches = read(project.stack("hill"), project.mask("hill"), ("slope", "red"), training, options, seed)
    for index, band in enumerate(contract_of(project.model("both")).input.bands):
        values = patches.stack[..., index].astype(np.float64)
        assert band.mean == pytest.approx(np.nanmean(values))
        assert band.deviation == pytest.approx(np.nanstd(values))
        valid = values[~np.isnan(values)]
        assert (band.edges[0], band.edges[-1]) == (band.minimum, band.maximum) == (valid.min(), valid.max())
        counted = [np.mean((valid >= low) & (valid < high)) for low, high in pairwise(band.edges)]
        counted[-1] += np.mean(valid == band.maximum)
        assert band.shares == pytest.approx(counted)


def test_threshold_and_scores_are_those_of_the_file_on_validation_blocks(
    finished: tuple[Project, study.Study, list[study.StudyProgress]],
) -> None:
    project, _, _ = finished
    model = Model.load(project.model("both"))
    blocks = split(project.mask("hill"), project.params.split, project.params.seed)
    windows = [block.window for block in blocks if block.part == "validation"]
    counts = {step: metrics.Confusion() for step in range(1, 100)}
    with open_raster(project.mask("hill")) as mask:
        for window, found in zip(windows, probabilities(model, project.stack("hill"), windows), strict=True):
            truth = mask.read(1, window=window)
            for step in counts:
                counts[step] += metrics.confusion(found >= np.float32(step / 100), truth, np.isfinite(found))
    chosen = counts[round(model.contract.measured.threshold * 100)]
    assert chosen.f1 >= max(one.f1 for one in counts.values()) - 0.005  # see metrics.best_threshold
    assert model.contract.measured.scores == pytest.approx(chosen.scores())


def exported(
    project: Project, result: study.Study, path: Path, sign: int = 1, **training: bool
) -> tuple[keras.Model, Contract]:
    """The best trial's network, its logits turned over where the sign is -1, and what exporting it again says."""
    options = project.params.training.model_copy(update=training)
    changed = replace(project, params=project.params.model_copy(update={"training": options}))
    dataset = Dataset.load(changed, "both")
    model = study._best_model(changed, dataset, result.best)
    model.layers[-1].set_weights([sign * weights for weights in model.layers[-1].get_weights()])
    raw = keras.models.clone_model(model)
    raw.set_weights(model.get_weights())
    return raw, export.export_model(model, dataset, changed, export.ExportOrigin("both", "c", "r", {}), path)


@pytest.mark.slow
def test_the_file_gives_the_logits_of_the_network_on_the_line_that_its_contract_states(
    finished: tuple[Project, study.Study, list[study.StudyProgress]], tmp_path: Path
) -> None:
    project, result, _ = finished
    raw, contract = exported(project, result, tmp_path / "again.onnx")
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
def test_calibration_keeps_the_order_of_the_pixels_and_the_counts_are_those_of_the_file(
    finished: tuple[Project, study.Study, list[study.StudyProgress]], tmp_path: Path
) -> None:
    project, result, _ = finished
    _, plain = exported(project, result, tmp_path / "plain.onnx", calibrate=False)
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
def test_switched_off_the_file_holds_the_network_as_it_was_trained(
    finished: tuple[Project, study.Study, list[study.StudyProgress]], tmp_path: Path
) -> None:
    project, result, _ = finished
    raw, contract = exported(project, result, tmp_path / "plain.onnx", calibrate=False)
    written = onnx.load(tmp_path / "plain.onnx")
    assert contract.measured.calibration is None
    assert written.graph == to_onnx(raw).graph
    assert contract.origin.weights == weights_digest(to_onnx(raw))


@pytest.mark.slow
def test_a_network_whose_logits_are_upside_down_is_left_as_it_is_and_that_is_said(
    finished: tuple[Project, study.Study, list[study.StudyProgress]], tmp_path: Path
) -> None:
    project, result, _ = finished
    raw, contract = exported(project, result, tmp_path / "turned.onnx", sign=-1)
    line = contract.measured.calibration
    assert line is not None
    assert (line.slope, line.offset) == (1, 0)
    assert "higher logits do not mean more landslide" in line.declined
    assert onnx.load(tmp_path / "turned.onnx").graph == to_onnx(raw).graph


@pytest.mark.slow
def test_subsets_are_measured_with_the_calibrated_file_at_its_threshold(
    finished: tuple[Project, study.Study, list[study.StudyProgress]], tmp_path: Path
) -> None:
    project, result, _ = finished
    _, contract = exported(dropping(project, groups={"terrain": 0.5}, tolerance=1), result, tmp_path / "any.onnx")
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
    with open_raster(project.stack("hill")) as stack, open_raster(project.mask("hill")) as mask:
        for block in split(project.mask("hill"), project.params.split, project.params.seed):
            if block.part == "validation":
                red, slope = stack.read(window=block.window)
                alone = shipped.probability(np.stack([np.full_like(slope, np.nan), red]))
                valid = np.isfinite(red) & np.isfinite(slope)
                counts += metrics.confusion(
                    alone >= contract.measured.threshold, mask.read(1, window=block.window), valid
                )
    assert found["optical",].f1 == pytest.approx(counts.f1)


def dropping(project: Project, **options: object) -> Project:
    """The project with a recipe that drops something."""
    recipes = {"study": Recipe(dropping=DroppingOptions.model_validate(options))}
    return replace(project, params=project.params.model_copy(update={"recipes": recipes}))


def test_what_is_dropped_makes_another_trial_and_the_tolerance_does_not(project: Project) -> None:
    (hyperparameters,) = hyperparameter_sets(find_search(project.params, "hopeless"), seed=1)
    lost = {"groups": {"terrain": 0.5}}
    often, seldom = dropping(project, **lost), dropping(project, groups={"terrain": 0.1})
    strict = dropping(project, **lost, tolerance=0.01)
    keys = [trial_key(one, ("slope", "red"), "v", hyperparameters) for one in (project, often, seldom, strict)]
    assert len(set(keys)) == 3
    assert keys[1] == keys[3]
    found = recorded_hyperparameters(dropping(project, **lost, clouds=0.25).params, hyperparameters)
    assert found["dropping"] == "terrain 0.5, clouds 0.25"
    assert "dropping" not in recorded_hyperparameters(project.params, hyperparameters)


def test_calibration_comes_after_the_trials_and_changes_none(project: Project) -> None:
    (hyperparameters,) = hyperparameter_sets(find_search(project.params, "hopeless"), seed=1)
    off = project.params.training.model_copy(update={"calibrate": False})
    other = replace(project, params=project.params.model_copy(update={"training": off}))
    deeper = project.params.training.model_copy(update={"depth": 2})
    changed = replace(project, params=project.params.model_copy(update={"training": deeper}))
    key = trial_key(project, ("red",), "v", hyperparameters)
    assert trial_key(other, ("red",), "v", hyperparameters) == key != trial_key(changed, ("red",), "v", hyperparameters)


def test_runs_are_on_record(finished: tuple[Project, study.Study, list[study.StudyProgress]]) -> None:
    project, result, _ = finished
    store = client(project)
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


@pytest.mark.slow
def test_a_repeated_study_gives_the_same_weights(
    finished: tuple[Project, study.Study, list[study.StudyProgress]], tmp_path: Path
) -> None:
    project, _, _ = finished
    study.run(again := make_project(tmp_path / "again"), "both")
    first, second = contract_of(project.model("both")), contract_of(again.model("both"))
    assert first.origin.weights == second.origin.weights
    assert first.origin.data_version == second.origin.data_version
    assert first.measured.threshold == second.measured.threshold


def test_the_data_version_follows_the_data(tmp_path: Path) -> None:
    project = make_project(tmp_path / "one")
    record = json.loads(project.stack_record("hill").read_text())
    before = Dataset.load(project, "both").version
    project.stack_record("hill").write_text(json.dumps({**record, "mask_md5": "0" * 32, "area": "hill"}))
    assert Dataset.load(project, "both").version != before


def test_a_value_that_only_a_test_block_holds_is_plausible_but_no_training_value(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    blocks = split(project.mask("hill"), project.params.split, project.params.seed)
    window = next(block.window for block in blocks if block.part == "test")
    with rasterio.open(project.stack("hill"), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as stack:
        red = stack.descriptions.index("red") + 1
        stack.write(np.full((1, 1), 900, np.float32), red, window=Window(window.col_off, window.row_off, 1, 1))
    dataset = Dataset.load(project, "both")
    assert dataset.value_ranges[1, 1] == 900
    assert dataset.statistics.maximum[1] < 900


def test_areas_are_joined_only_where_their_stacks_are_made_alike(tmp_path: Path) -> None:
    areas = {name: {"role": "training", "folder": name} for name in ("hill", "dale")}
    project = make_project(tmp_path / "two", areas=areas)
    one = Dataset.load(make_project(tmp_path / "one"), "both")
    two = Dataset.load(project, "both")
    assert len(two.training) == 2 * len(one.training)
    assert two.counts(project.params.split)["test_blocks"] == 2 * one.counts(project.params.split)["test_blocks"] == 10
    make_stack(project, "dale", slope=None)  # of an earlier release, which did not state it
    with pytest.raises(StudyError, match=r"'hill' and 'dale' differ in processing: .*zevenbergen_thorne"):
        Dataset.load(project, "both")


def test_landslides_that_no_valid_pixel_shows_are_missed_before_training(tmp_path: Path) -> None:
    project = make_project(tmp_path / "cloudy")
    with open_raster(project.stack("hill")) as dataset:
        grid, stack = Grid.of(dataset), dataset.read()
    with open_raster(project.mask("hill")) as dataset:
        stack[0][dataset.read(1) == 1] = np.nan
    with write_cog(project.stack("hill"), grid, Layout("float32", np.nan, ("red", "slope"))) as writer:
        writer.write(stack)
    with pytest.raises(StudyError, match="training blocks hold no landslide where all of slope, red are valid"):
        Dataset.load(project, "both")


@pytest.mark.slow
def test_a_trial_that_diverges_is_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    project = make_project(tmp_path / "partly")
    result = study.run(project, "both", search="partly")
    assert result.best.hyperparameters.learning_rate == 0.01
    table = json.loads(project.trials("both").read_text())
    assert len(table["trials"]) == len(table["failed"]) == 1
    assert "not a number" in table["failed"][0]["reason"]
    assert client(project).get_run(table["failed"][0]["run_id"]).info.status == "FAILED"


@pytest.mark.slow
def test_where_all_trials_fail_earlier_results_stay(tmp_path: Path) -> None:
    project = make_project(tmp_path / "hopeless")
    project.model("both").parent.mkdir()
    project.model("both").write_text("earlier")
    with pytest.raises(StudyError, match=r"all 1 trials failed.*not a number"):
        study.run(project, "both", search="hopeless")
    assert project.model("both").read_text() == "earlier"
    assert [path.name for path in project.model("both").parent.iterdir()] == ["both.onnx"]


@pytest.mark.slow
def test_too_many_failures_stop_a_study(tmp_path: Path) -> None:
    search = {"filters": [2], "learning_rate": [1.0e38, 1.1e38, 1.2e38, 0.01], "batch_size": [8], "epochs": 1}
    project = make_project(tmp_path / "failing", searches={"small": {**search, "failures": 1}})
    with pytest.raises(StudyError, match=r"2 of 4 trials failed, more than the 1 that `failures`.*not a number"):
        study.run(project, "both")
    assert statuses(project) == ["FAILED", "FAILED", "FAILED"]  # the study, and two trials: the others never began


@pytest.mark.slow
def test_a_file_that_differs_from_keras_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "differs")
    written = export.to_onnx

    def faulty(model: object) -> onnx.ModelProto:
        graph = written(model)
        bias = graph.graph.initializer[-1]
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
        return graph

    monkeypatch.setattr(export, "to_onnx", faulty)
    with pytest.raises(StudyError, match="differs from the Keras model"):
        study.run(project, "both")
    assert not list(project.model("both").parent.iterdir())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    with pytest.raises(StudyError, match=r"hill\.tif: has no band near_infrared; it holds red, slope"):
        study.run(project, "more")
    with pytest.raises(ParamsError, match=r"no search 'none'.*small, partly, hopeless"):
        study.run(project, "both", search="none")
    project.stack("hill").unlink()
    with pytest.raises(StudyError, match="run talud stack hill"):
        study.run(project, "both")
    project.stack_record("hill").unlink()
    with pytest.raises(StudyError, match="run talud stack hill"):
        study.run(project, "both")


def test_a_patch_that_the_network_cannot_halve_is_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", split={"block": 32, "patch": 18}, training={"depth": 2})
    with pytest.raises(ParamsError, match=r"split.patch is 18 pixels.*multiple of 4"):
        study.run(project, "both")


@pytest.mark.slow
def test_the_command_prints_its_result_and_nothing_of_its_libraries(tmp_path: Path) -> None:
    make_project(tmp_path / "project")
    command = [sys.executable, "-m", "talud.cli.main", "train", "both"]
    done = subprocess.run(command, cwd=tmp_path / "project", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("train both: ") for line in done.stderr.splitlines()), done.stderr
    assert done.stdout.splitlines()[-1].startswith("models/both.onnx")
    wrong = subprocess.run(
        [*command[:-1], "none"], cwd=tmp_path / "project", capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    assert wrong.stderr == "talud: no band set 'none' in params.yaml; it has: both, more\n"


def test_the_table_holds_all_trials_of_the_store_and_both_runs_the_examples(
    finished: tuple[Project, study.Study, list[study.StudyProgress]],
) -> None:
    project, result, _ = finished
    store, table = client(project), json.loads(project.trials("both").read_text())
    (experiment,) = store.search_experiments()
    runs = store.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{result.parent_run_id}'")
    assert {run.info.run_id for run in runs} == {trial["run_id"] for trial in table["trials"] + table["failed"]}
    for run_id, files in ((result.parent_run_id, ["examples.png", "trials.html"]), (table["best"], ["examples.png"])):
        assert [file.path for file in store.list_artifacts(run_id)] == files


# A study that was stopped.

LONGER = {"filters": [2, 3], "learning_rate": [0.01], "batch_size": [8, 16], "epochs": 4}
KILLED = """
import os, sys
from pathlib import Path
from talud.project import Project
from talud.training import study, trial_runner
epochs, moment, left = 0, sys.argv[2], int(sys.argv[3])
def die(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
if moment == "epoch":
    watch = die
else:
    watch = None
    module, name = {"write": (trial_runner.checkpoint, "write"), "send": (trial_runner.TrialRun, "log_epochs"), "scores": (trial_runner.TrialRun, "log_scores"), "export": (study, "export")}[moment]
    former = getattr(module, name)
    def wrapped(*arguments, **options):
        result = former(*arguments, **options)
        die()
        return result
    setattr(module, name, wrapped)
study.run(Project.find(Path(sys.argv[1])), "both", on_progress=watch)
"""  # noqa: E501


def killed(project: Project, moment: str, at: int) -> int:
    command = [sys.executable, "-c", KILLED, project.root, moment, str(at)]
    return subprocess.run(command, capture_output=True, check=False, text=True).returncode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project of a longer study that nothing stopped."""
    project = make_project(tmp_path_factory.mktemp("uninterrupted") / "project", searches={"small": LONGER})
    study.run(project, "both")
    return project


def learning_curves(project: Project) -> dict[str, list[tuple[int, float]]]:
    store = client(project)
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
        [("epoch", 1), ("epoch", 7)],
        [("write", 2), ("write", 6), ("send", 3)],
        [("scores", 1), ("scores", 2), ("export", 1)],
    ],
)
def test_a_study_that_is_killed_ends_as_if_it_had_not_been(
    uninterrupted: Project, tmp_path: Path, kills: list[tuple[str, int]]
) -> None:
    project = make_project(tmp_path / "project", searches={"small": LONGER})
    for moment, at in kills:
        assert killed(project, moment, at) == -9
    study.run(project, "both")
    assert len(runs(project)) == 5  # the study and its four trials
    assert set(statuses(project)) == {"FINISHED"}
    assert learning_curves(project) == learning_curves(uninterrupted)
    assert contract_of(project.model("both")).origin.weights == contract_of(uninterrupted.model("both")).origin.weights
    tables = [json.loads(one.trials("both").read_text())["trials"] for one in (project, uninterrupted)]
    for trial in (*tables[0], *tables[1]):
        del trial["run_id"], trial["seconds"]
    assert tables[0] == tables[1]


STARTED = """
import importlib.util, os, sys
from pathlib import Path
found = importlib.util.spec_from_file_location("checkpoint", sys.argv[1])  # without Keras, which its package imports
module = sys.modules["checkpoint"] = importlib.util.module_from_spec(found)
found.loader.exec_module(module)
with module.counting_crashes(Path(sys.argv[2])):
    os.kill(os.getpid(), 9)
"""


def die_of(path: Path) -> None:
    """A process that is killed while it is at a trial."""
    command = [sys.executable, "-c", STARTED, checkpoint.__file__, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr


@pytest.mark.slow
def test_processes_that_were_killed_at_a_trial_are_counted_until_it_gets_on(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "trial.npz"
    for number in range(3):
        assert checkpoint.crash_count(path) == number
        with suppress(KeyboardInterrupt), checkpoint.counting_crashes(path):
            raise KeyboardInterrupt
        with suppress(StudyError), checkpoint.counting_crashes(path):
            raise StudyError("the loss is not a number")
        assert checkpoint.crash_count(path) == number
        die_of(path)
    checkpoint.write(path, TrialState())
    assert checkpoint.crash_count(path) == 0
    die_of(path)
    assert checkpoint.crash_count(path) == 1
    with checkpoint.counting_crashes(path):
        checkpoint.write(path, TrialState())
    assert [file.name for file in path.parent.iterdir()] == ["trial.npz"]
    checkpoint.crash_file(path).write_text("no number")
    assert checkpoint.crash_count(path) == 0


@pytest.mark.slow
def test_a_trial_that_has_killed_its_process_three_times_is_passed_over(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    dataset = Dataset.load(project, "both")
    hyperparameters, _ = hyperparameter_sets(find_search(project.params, "small"), 7)
    path = project.checkpoint(trial_key(project, dataset.bands, dataset.version, hyperparameters))
    for _ in range(3):
        die_of(path)
    result, seen = epochs_trained(project)
    assert seen == ["2 filters · lr 0.001 · batch 8"] * 2
    assert result.best.hyperparameters.learning_rate == 0.001
    (failed,) = json.loads(project.trials("both").read_text())["failed"]
    assert re.match(
        r"its process was killed 3 times between epoch 0 and the next checkpoint, probably out of memory; "
        r"to save memory, use a smaller batch_size or .*; to retry, delete checkpoints/\w+\.kills$",
        failed["reason"],
    )
    assert client(project).get_run(failed["run_id"]).info.status == "FAILED"
    assert epochs_trained(project)[1] == []  # nor does another start of the study meet it
    checkpoint.crash_file(path).unlink()
    assert epochs_trained(project)[1] == ["2 filters · lr 0.01 · batch 8"] * 2


def test_of_all_trials_the_best_alone_keeps_weights_and_no_checkpoint_is_read_without_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path)
    done = []
    for number, f1 in enumerate((0.3, 0.5, 0.4, 0.6, 0.2)):
        scores = {"val_precision": f1, "val_recall": f1, "val_f1": f1, "val_iou": f1}
        arrays = [np.full(3, number)]
        state = TrialState((Epoch(1, 0, scores),), 1, arrays, arrays, arrays, weight_count=3)
        hyperparameters = replace(hyperparameter_sets(find_search(project.params, "small"), 7)[0], filters=number + 1)
        done.append(TrialResult("run", hyperparameters, f"{number}", state.without_arrays, state.stored_arrays))
        checkpoint.write(project.checkpoint(f"{number}"), state)
    touched = []

    def spied(name: str, former: Any, path: Path, *state: TrialState) -> TrialState | None:
        touched.append((name, path.stem))
        return former(path, *state)

    for name in ("read", "write"):
        monkeypatch.setattr(checkpoint, name, partial(spied, name, getattr(checkpoint, name)))
    shelf = study._CheckpointPruner(project)
    for number in range(1, 6):
        shelf.prune_weights(done[:number])
    read = [key for name, key in touched if name == "read"]
    written = [key for name, key in touched if name == "write"]
    assert read == ["0", "1", "3"]  # the best so far
    assert sorted(written) == ["0", "0", "1", "1", "2", "3", "4"]
    kept = [checkpoint.read(project.checkpoint(entry.key)) for entry in done]
    assert [state.stored_arrays for state in kept] == [set(), set(), set(), {"best"}, set()]
    assert kept[3].best[0].tolist() == [3, 3, 3]
    assert [state.without_arrays for state in kept] == [entry.state for entry in done]

    touched.clear()
    resumed = study._CheckpointPruner(project)
    for number in range(1, 6):
        resumed.prune_weights(
            [replace(one, stored_arrays=state.stored_arrays) for one, state in zip(done, kept, strict=True)][:number]
        )
    assert touched == []


def epochs_trained(project: Project, **options: str) -> tuple[study.Study, list[str]]:
    """Run a study; the trials of all epochs that were trained."""
    seen: list[study.StudyProgress] = []
    return study.run(project, "both", on_progress=seen.append, **options), [one.name for one in seen]


@pytest.mark.slow
def test_a_trial_is_run_again_only_where_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "project")
    first, seen = epochs_trained(project)
    assert len(seen) == 4
    again, seen = epochs_trained(project)
    assert (again.best.run_id, again.parent_run_id, seen) == (first.best.run_id, first.parent_run_id, [])
    assert len(runs(project)) == 3

    wider = {"small": {**PARAMS["searches"]["small"], "learning_rate": [0.01, 0.001, 0.003]}}
    (project.root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "searches": wider}))
    project = Project.find(project.root)
    _, seen = epochs_trained(project)
    assert seen == ["2 filters · lr 0.003 · batch 8"] * 2  # the others were done in the earlier study

    record = json.loads(project.stack_record("hill").read_text())
    project.stack_record("hill").write_text(json.dumps({**record, "mask_md5": "0" * 32}))
    assert len(epochs_trained(project)[1]) == 6
    monkeypatch.setitem(VERSIONS, "training", VERSIONS["training"] + 1)
    assert len(epochs_trained(project)[1]) == 6


@pytest.mark.slow
def test_a_best_trial_whose_weights_an_earlier_study_did_not_keep_is_trained_again(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    first = study.run(project, "both")
    (worse,) = (entry for entry in first.results if entry is not first.best)
    alone = {"small": {**PARAMS["searches"]["small"], "learning_rate": [worse.hyperparameters.learning_rate]}}
    (project.root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "searches": alone}))
    second = study.run(Project.find(project.root), "both")
    assert second.best.state.scores == worse.state.scores
    assert contract_of(project.model("both")).origin.run_id == second.best.run_id


@pytest.mark.slow
def test_two_studies_of_a_band_set_do_not_run_at_once(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")

    def intrude(_: study.StudyProgress) -> None:
        with pytest.raises(StudyError, match="another process trains 'both'"):
            study.run(project, "both")

    study.run(project, "both", on_progress=intrude)
    assert len(runs(project)) == 3


@pytest.mark.slow
def test_successive_halving_leaves_the_worse_behind(tmp_path: Path) -> None:
    search = {"filters": [2], "learning_rate": [0.01, 1.0e-9, 0.003, 1.0e-8], "batch_size": [8], "epochs": 4}
    halving = {**search, "method": "halving", "first_epochs": 1, "factor": 2}
    project = make_project(tmp_path / "project", searches={"small": halving})
    result, seen = epochs_trained(project)
    epochs = {entry.hyperparameters.learning_rate: len(entry.state.epochs) for entry in result.results}
    assert sorted(epochs.values()) == [1, 1, 2, 4]
    assert len(seen) == 4 + 2 + 2
    assert epochs[1.0e-9] == epochs[1.0e-8] == 1
    table = json.loads(project.trials("both").read_text())
    assert {trial["learning_rate"]: trial["epochs_run"] for trial in table["trials"]} == epochs
    assert set(statuses(project)) == {"FINISHED"}
    again, seen = epochs_trained(project)
    assert (again.best.run_id, seen) == (result.best.run_id, [])


@pytest.mark.slow
def test_runs_that_a_killed_study_left_open_are_ended(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    assert killed(project, "epoch", 1) == -9
    assert statuses(project) == ["RUNNING", "RUNNING"]
    changed = {**PARAMS, "seed": 8}
    (project.root / "params.yaml").write_text(yaml.safe_dump(changed))
    with pytest.warns(TaludWarning, match=r"study of both \(search small\) .* is unfinished, .* its trials start anew"):
        study.run(Project.find(project.root), "both")
    assert statuses(project) == ["FINISHED", "FINISHED", "FINISHED", "KILLED", "KILLED"]


@pytest.mark.slow
def test_files_that_cannot_be_kept_are_one_line_and_cost_no_training(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    (project.root / "mlartifacts").write_text("in the way")
    with pytest.raises(RegistryError, match=r": .*mlartifacts.*; nothing is lost, start again$"):
        study.run(project, "both")
    assert not project.model("both").exists()
    (project.root / "mlartifacts").unlink()
    assert epochs_trained(project)[1] == []
    assert set(statuses(project)) == {"FINISHED"}


@pytest.mark.slow
def test_a_trial_that_halving_left_behind_is_what_it_is_in_a_grid(uninterrupted: Project, tmp_path: Path) -> None:
    halving = {**LONGER, "method": "halving", "first_epochs": 1, "factor": 4}
    project = make_project(tmp_path / "project", searches={"small": LONGER, "halving": halving})
    study.run(project, "both", search="halving")
    study.run(project, "both", search="small")
    tables = [json.loads(one.trials("both").read_text())["trials"] for one in (project, uninterrupted)]
    assert [trial["scores"] for trial in tables[0]] == [trial["scores"] for trial in tables[1]]
    assert [trial["epochs_run"] for trial in tables[0]] == [4, 4, 4, 4]
    assert contract_of(project.model("both")).origin.weights == contract_of(uninterrupted.model("both")).origin.weights
