"""Tests of registration and promotion with a real model registry."""

from __future__ import annotations

import getpass
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import onnx
import pytest
from mlflow import MlflowClient

from small_projects import EVERYTHING, NOTHING, PARITY, SOMETHING, pixels, write_area, write_model, write_params
from stack_files import noise, write_stack
from talud import load_model, predict, registry
from talud.contract import variant_path
from talud.engine.runtime import Model
from talud.errors import ModelError, PromotionError, RegistryError
from talud.evaluation import gate, promotion
from talud.project import Project
from talud.quantization.precision import quantize_to_int8
from talud.raster import open_raster
from talud.registry import Store
from talud.training import export


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the registry that the tests share."""
    root = tmp_path_factory.mktemp("store")
    Store.open(root, create=True)
    return root


@pytest.fixture
def project(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Project with one training area, a tenth of it landslide."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    found = write_params(tmp_path)
    rows, _ = np.indices((128, 128))
    write_area(found, "basin", rows % 10 == 0)
    return found


Train = Callable[..., Path]


@pytest.fixture
def train(project: Project, tiny_model: Path) -> Train:
    """Function that puts a model with a given contract into the project."""

    return partial(write_model, project, tiny_model)


def quantize(path: Path, seed: int, **changes: object) -> bytes:
    """Write an int8 variant next to a model, calibrated on noise."""
    stated = {
        "precision": "int8",
        "loss": {"f1": 0.0123, "largest_difference": 0.5, "mean_difference": 0.001},
        **changes,
    }
    contract = Model.load(path).contract.replace(**stated)
    graph = quantize_to_int8(onnx.load(path), noise(32, 32, seed=seed)[np.newaxis])
    export.save_model(graph, contract, variant_path(path, "int8"))
    return variant_path(path, "int8").read_bytes()


def band_set(project: Project) -> str:
    return next(iter(project.params.band_sets))


def name(project: Project) -> str:
    return f"landslide-unet-{band_set(project)}"


def register(project: Project) -> promotion.Registration:
    return promotion.register(project, band_set(project))


def record(project: Project) -> bytes:
    return project.registration(band_set(project)).read_bytes()


def aliases(project: Project) -> dict[str, int]:
    return dict(Store.open(project.root).client.get_registered_model(name(project)).aliases)


def runs(project: Project) -> list[str]:
    client = Store.open(project.root).client
    experiment = client.get_experiment_by_name(registry.EXPERIMENT)
    found = client.search_runs([experiment.experiment_id], f"tags.band_set = '{band_set(project)}'")
    return sorted(run.info.run_name for run in found)


@pytest.mark.slow
def test_first_version_becomes_champion(project: Project, train: Train) -> None:
    path = train(SOMETHING, run_id="1" * 32, commit="c0ffee", scores={"precision": 0.7, "recall": 0.5, "f1": 0.6})
    done = register(project)

    assert (done.name, done.version, done.alias) == (name(project), "1", "champion")
    fetched = registry.fetch(f"models:/{name(project)}@champion", project.root)
    assert Model.load(fetched.path).contract == Model.load(path).contract
    client = Store.open(project.root).client
    version = client.get_model_version(name(project), "1")
    assert version.tags["commit"] == "c0ffee"
    assert float(version.tags["f1_validation"]) == 0.6
    assert version.tags["data_version"] == Model.load(path).contract.origin.data_version
    assert "red, green, blue at 12.5 m" in version.description
    run = client.get_run(done.run_id)
    assert (run.data.tags["restored_from"], run.data.metrics["f1"], run.data.params["filters"]) == ("1" * 32, 0.6, "4")
    assert json.loads(record(project))["reason"] == f"the first version of {name(project)}"


@pytest.mark.slow
def test_register_is_idempotent(project: Project, train: Train) -> None:
    train(SOMETHING, run_id="1" * 32)
    first = register(project)
    before = runs(project), record(project)
    train(SOMETHING, run_id="2" * 32, commit="another")  # the same model, trained again
    assert register(project) == first
    assert (runs(project), record(project)) == before
    assert len(Store.open(project.root).client.search_model_versions(f"name='{name(project)}'")) == 1


@pytest.mark.slow
def test_register_restores_lost_files(project: Project, train: Train) -> None:
    path = train(SOMETHING)
    done = register(project)
    uri = f"models:/{done.name}@champion"
    shutil.rmtree(registry.fetch(uri, project.root).path.parent)
    with pytest.raises(RegistryError, match=r"files are missing from file:.*, or run talud register"):
        registry.fetch(uri, project.root)
    assert register(project) == done
    assert Model.load(registry.fetch(uri, project.root).path).contract == Model.load(path).contract


@pytest.mark.slow
@pytest.mark.parametrize("sent", [0, 1])  # complete files before the interruption
def test_register_completes_an_interrupted_file_restoration(
    project: Project, train: Train, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    path = train(SOMETHING)
    done = register(project)
    uri = f"models:/{done.name}@champion"
    shutil.rmtree(registry.fetch(uri, project.root).path.parent)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifacts", partialmethod(send_part_of, sent))
        with pytest.raises(KeyboardInterrupt):
            register(project)
    assert register(project) == done
    assert Model.load(registry.fetch(uri, project.root).path).contract == Model.load(path).contract


@pytest.mark.slow
def test_register_completes_an_interrupted_run_restoration(
    project: Project, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(SOMETHING, run_id="7" * 32, scores={"precision": 0.7, "recall": 0.5, "f1": 0.6})

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry.TrialRun, "log_scores", stopped)
        with pytest.raises(KeyboardInterrupt):
            register(project)
    run = Store.open(project.root).client.get_run(register(project).run_id)
    assert (run.info.status, run.data.metrics["f1"], "error" in run.data.tags) == ("FINISHED", 0.6, False)
    assert len(runs(project)) == 1


def send_part_of(client: MlflowClient, number: int, model_id: str, local_dir: str) -> None:
    """Upload some files, largest first, and half of the next; then stop."""
    files = sorted(Path(local_dir).iterdir(), key=lambda file: -file.stat().st_size)
    for file in files[:number]:
        client.log_model_artifact(model_id, str(file))
    files[number].write_bytes(files[number].read_bytes()[: files[number].stat().st_size // 2])
    client.log_model_artifact(model_id, str(files[number]))
    raise KeyboardInterrupt


@pytest.mark.slow
def test_register_adds_a_variant_to_its_models_version(
    project: Project, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = train(SOMETHING)
    uri = f"models:/{name(project)}@champion"
    monkeypatch.chdir(tmp_path)
    assert register(project).variants == ()
    with pytest.raises(
        ModelError,
        match=f"version 1: has no int8 variant; run talud quantize models/{band_set(project)}.onnx",
    ):
        load_model(uri, precision="int8")

    content = quantize(path, seed=1)
    done = register(project)
    assert (done.version, done.variants, register(project)) == ("1", ("int8",), done)
    model = load_model(uri, precision="int8")
    assert model.path.read_bytes() == content
    assert model.title == f"{name(project)}, version 1, int8"
    assert load_model(uri).contract == load_model(uri, precision="float32").contract == Model.load(path).contract
    version = Store.open(project.root).client.get_model_version(name(project), "1")
    assert version.tags["int8_f1_loss"] == "0.0123"
    assert "int8 variant loses 0.0123 of the F1" in version.description

    predicted = predict(model, write_stack(tmp_path / "stack.tif", noise(40, 50)), tmp_path / "map")
    record = json.loads((tmp_path / "map/prediction.json").read_text())
    assert (record["model"]["version"], record["model"]["precision"]) == ("1", "int8")
    with open_raster(tmp_path / "map/landslides.tif") as classes:
        assert classes.tags()["TALUD_PRECISION"] == "int8"
    assert predicted.landslides > 0


@pytest.mark.slow
def test_register_replaces_variants_and_skips_foreign_ones(project: Project, train: Train) -> None:
    quantize(train(SOMETHING), seed=1)
    register(project)
    content = quantize(train(SOMETHING), seed=2)
    assert register(project).variants == ("int8",)
    stored = registry.fetch(f"models:/{name(project)}/1", project.root).path
    assert variant_path(stored, "int8").read_bytes() == content
    assert register(project).passed_over == ()
    train(NOTHING)  # the variant next to it has another threshold
    done = register(project)
    assert (done.version, done.variants, done.passed_over) == ("2", (), (f"models/{band_set(project)}.int8.onnx",))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"data_version": "1" * 32},
        {"hyperparameters": {"filters": 4, "seed": 8}},
        {"halo_errors": {8: 0.01}},  # exported again, by a talud that measures more
    ],
)
def test_equal_weights_of_other_data_make_a_new_version(
    project: Project, train: Train, change: dict[str, object]
) -> None:
    train(SOMETHING)
    assert register(project).version == "1"
    train(SOMETHING, **change)
    assert (register(project).version, register(project).version) == ("2", "2")


@pytest.mark.slow
def test_model_with_higher_f1_becomes_champion(project: Project, train: Train) -> None:
    train(NOTHING)
    register(project)
    train(
        EVERYTHING, scores={"precision": 0.1, "recall": 0.1, "f1": 0.1, "iou": 0.05}
    )  # its stated scores are not used
    better = register(project)
    assert (better.version, better.alias, aliases(project)) == ("2", "champion", {"champion": 2})
    score = better.gate.f1[gate.VALIDATION_BLOCKS]
    assert score["champion"] == 0
    assert score["model"] == pytest.approx(2 * 0.1 / (1 + 0.1), abs=0.01)  # recall 1, precision 0.1: 2 · P / (1 + P)

    train(NOTHING)  # back to the first
    worse = register(project)
    assert (worse.version, worse.alias, aliases(project)) == ("1", "challenger", {"champion": 2, "challenger": 1})
    assert "worse than the champion, version 2" in worse.reason
    assert register(project) == worse


@pytest.mark.slow
def test_challenger_wins_after_an_inventory_correction(project: Project, train: Train) -> None:
    train(EVERYTHING)
    register(project)
    path = train(SOMETHING)
    rows, columns = np.indices((128, 128))
    write_area(project, "basin", (rows + columns) % 10 < 9)
    assert register(project).alias == "challenger"
    write_area(project, "basin", Model.load(path).probability(pixels(128, 128)) >= SOMETHING)
    assert (register(project).alias, aliases(project)) == ("champion", {"champion": 2})


@pytest.mark.slow
def test_equal_model_stays_challenger(project: Project, train: Train) -> None:
    train(NOTHING)
    register(project)
    train(0.998)
    equal = register(project)
    assert (equal.alias, aliases(project)) == ("challenger", {"champion": 1, "challenger": 2})
    assert "no better than the champion" in equal.reason


@pytest.mark.slow
def test_gate_area_rejects_a_worse_model(tmp_path: Path, project: Project, train: Train) -> None:
    project = write_params(tmp_path, gate={"role": "gate", "folder": "data/gate"})
    exact = Model.load(train(SOMETHING)).probability(pixels(100, 90)) >= SOMETHING
    write_area(project, "gate", exact)  # the gate's landslides are exactly what the champion maps
    register(project)
    train(EVERYTHING)
    done = register(project)
    assert done.gate.f1["gate"]["champion"] == 1
    assert done.gate.f1["gate"]["model"] == pytest.approx(2 * exact.mean() / (1 + exact.mean()), abs=1e-6)
    assert (done.alias, aliases(project)) == ("challenger", {"champion": 1, "challenger": 2})
    assert "on gate" in done.reason


@pytest.mark.slow
def test_champion_that_does_not_fit_the_stacks_is_replaced(project: Project, train: Train) -> None:
    train(EVERYTHING, pixel_size=25.0)
    register(project)
    train(NOTHING)
    done = register(project)
    assert (done.alias, aliases(project)) == ("champion", {"champion": 2})
    assert "cannot be run on the current stacks" in done.reason


@pytest.mark.slow
def test_register_restores_a_study_in_an_empty_store(
    project: Project, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    trial = {"filters": 4, "learning_rate": 0.001, "batch_size": 8, "epochs": 3, "best_epoch": 2, "seconds": 1.5}
    table = {
        "band_set": tmp_path.name,
        "search": "demo",
        "data_version": "0" * 32,
        "seed": 7,
        "parent_run_id": "a" * 32,
        "best": "b" * 32,
        "trials": [
            trial | {"run_id": run * 32, "name": f"trial {run}", "parameters": 1000, "scores": scores | {"f1": f1}}
            for scores in [{"precision": 0.5, "recall": 0.5, "iou": 0.3}]
            for run, f1 in (("b", 0.7), ("c", 0.4))
        ],
    }
    train(SOMETHING, run_id="b" * 32, hyperparameters={"filters": 4, "seed": 7})
    project.trials(tmp_path.name).write_text(json.dumps(table))
    done = register(project)
    study = [f"{tmp_path.name} · {run}" for run in ("demo", "trial b", "trial c")]
    assert (done.version, done.alias, runs(project)) == ("1", "champion", study)
    assert (register(project), runs(project)) == (done, study)

    client = Store.open(project.root).client
    run = client.get_run(done.run_id)
    assert (run.info.run_name, run.data.metrics["f1"], run.data.params["seed"]) == (study[1], 0.7, "7")
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["restored_from"] == "a" * 32
    assert parent.data.metrics["f1"] == 0.7
    assert "[trial b](" in parent.data.tags["mlflow.note.content"]


@pytest.mark.slow
def test_alias_is_not_moved_to_a_version_with_another_file(project: Project, train: Train) -> None:
    first = train(NOTHING).read_bytes()
    register(project)
    train(EVERYTHING)
    register(project)
    before = record(project)
    registry.fetch(f"models:/{name(project)}/2", project.root).path.write_bytes(first)
    models = Store.open(project.root).models
    models.set_alias(models.champion(name(project)), "challenger")
    with pytest.raises(RegistryError, match="version 2"):
        register(project)
    assert (aliases(project), record(project)) == ({"challenger": 2}, before)


def test_register_refuses_missing_or_foreign_models(project: Project, train: Train, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"talud train {tmp_path.name}"):
        register(project)
    train(SOMETHING, name="7band")
    with pytest.raises(ModelError, match=f"'7band', not of '{tmp_path.name}'"):
        register(project)
    assert not project.registration(tmp_path.name).exists()


UNFIT = [
    ({}, {"parity": {}}, "parity: the file does not state"),
    ({}, {"commit": "unknown"}, "contract: missing: commit"),
    ({"megabytes": 0.01}, {}, r"size: 0.0\d+ MB, limit 0.01 MB"),
    ({"seconds_per_megapixel": 1e-6}, {}, "speed: .* limit 1e-06 s"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("limits", "changes", "words"), UNFIT)
def test_model_that_fails_a_rule_does_not_become_champion(
    tmp_path: Path, project: Project, train: Train, limits: dict[str, object], changes: dict[str, object], words: str
) -> None:
    project = write_params(tmp_path, limits)
    train(SOMETHING, **changes)
    done = register(project)
    assert (done.alias, aliases(project)) == ("challenger", {"challenger": 1})
    assert re.match(f"failed the gate: {words}", done.reason)
    assert re.match(words, done.file_faults)
    assert [check["passed"] for check in json.loads(record(project))["gate"]["checks"]].count(False) == 1
    with pytest.raises(PromotionError, match=f"version 1 does not pass the gate: {words}"):
        promotion.promote(project, name(project), "1")
    assert aliases(project) == {"challenger": 1}


def test_gate_finds_parity_loss_and_contract_gaps(project: Project, train: Train) -> None:
    path = train(SOMETHING, parity={"difference": 2e-5, "allowed": 1e-5}, stack={}, data_version="unknown", scores={})
    model = Model.load(path)
    parity, contract, *_ = gate.run_gate(project, model, None).failed
    assert (parity.rule, parity.value, parity.limit) == ("parity", 2e-5, 1e-5)
    assert contract.words == "missing: stack, scores, data_version"
    bare = model.contract.input.bands[0].model_copy(update={"unit": "", "edges": (), "shares": ()})
    spoilt = model.contract.replace(bands=(bare, *model.contract.input.bands[1:]))
    assert set(gate.missing_facts(spoilt)) >= {"unit of red", "histogram of red"}


@pytest.mark.slow
def test_gate_records_measured_values(tmp_path: Path, project: Project, train: Train) -> None:
    project = write_params(tmp_path, {"megabytes": 1, "seconds_per_megapixel": 1000})
    path = train(SOMETHING)
    done = register(project)
    found = {check.rule: check for check in done.gate.checks}
    assert done.alias == "champion"
    assert found["parity"].value == PARITY["difference"]
    assert found["size"].value == pytest.approx(path.stat().st_size / 1e6, abs=1e-3)
    assert 0 < found["speed"].value < 1000
    assert register(project) == done  # nothing is measured again for the champion


@pytest.mark.slow
def test_model_worse_within_chance_needs_manual_promotion(project: Project, train: Train) -> None:
    probability = Model.load(train(SOMETHING)).probability(pixels(256, 256))
    low, high = np.quantile(probability, [0.5, 0.6]).tolist()
    # In each block one of the two models is right. Blocks read without their surroundings favour the first model.
    right = np.kron(np.random.default_rng(3).random((8, 8)) < 0.1, np.ones((32, 32))) > 0
    write_area(project, "basin", np.where(right, probability >= low, probability >= high))
    train(low)
    register(project)
    train(high)
    done = register(project)
    found = done.gate.f1[gate.VALIDATION_BLOCKS]
    assert found["model"] < found["champion"]
    assert (done.alias, done.gate.failed) == ("challenger", ())
    assert "no better than the champion" in done.reason
    train(low)
    assert "the first version" in register(project).reason
    promotion.promote(project, name(project), "2")
    assert aliases(project) == {"champion": 2}


@pytest.mark.slow
def test_register_respects_manual_promotion_and_rollback(project: Project, train: Train) -> None:
    train(NOTHING)
    register(project)
    train(0.998)
    assert register(project).alias == "challenger"  # equal
    done = promotion.promote(project, name(project), "2")
    assert (done.alias, aliases(project)) == ("champion", {"champion": 2})
    tags = Store.open(project.root).models.look_up(name(project)).tags
    assert (tags["replaced"], tags["promoted_by"]) == ("1", getpass.getuser())
    assert datetime.fromisoformat(tags["promoted_at"]) > datetime.now(UTC) - timedelta(minutes=5)
    rows, _ = np.indices((128, 128))
    write_area(project, "basin", rows % 10 == 0)
    train(EVERYTHING)  # better than both: version 3
    assert (register(project).alias, aliases(project)) == ("champion", {"champion": 3})
    models = Store.open(project.root).models
    back, gone = models.roll_back(name(project))
    assert (back.version, gone.version, aliases(project)) == ("2", "3", {"champion": 2})
    done = register(project)
    assert (done.alias, aliases(project)) == ("challenger", {"champion": 2, "challenger": 3})
    assert re.search("set aside by .*, rolled back to version 2; talud models promote .* 3 makes it", done.reason)
    assert models.roll_back(name(project))[0].version == "1"
    with pytest.raises(RegistryError, match="its champion, version 1, has no previous champion"):
        models.roll_back(name(project))
    for number in ("2", "3", "2"):
        models.promote(models.look_up(f"{name(project)}/{number}"), by_hand=True)
    assert [models.roll_back(name(project))[0].version for _ in range(2)] == ["3", "1"]  # and not to 2 again
    with pytest.raises(RegistryError, match="its champion, version 1, has no previous champion"):
        models.roll_back(name(project))
    for number in ("2", "1"):
        models.promote(models.look_up(f"{name(project)}/{number}"), by_hand=True)
    assert models.roll_back(name(project))[0].version == "2"
    with pytest.raises(RegistryError, match="its champion, version 2, has no previous champion"):
        models.roll_back(name(project))
    assert promotion.promote(project, name(project), "3").alias == "champion"
    assert "set_aside" not in Store.open(project.root).models.look_up(name(project)).tags
    assert register(project).alias == "champion"


@pytest.mark.slow
def test_promote_refuses_a_worse_version(project: Project, train: Train) -> None:
    train(EVERYTHING)
    register(project)
    train(NOTHING)
    register(project)
    with pytest.raises(
        PromotionError, match=r"F1 on validation blocks: 0[.]000 against .* 0[.]186, worse beyond chance"
    ):
        promotion.promote(project, name(project), "2")
    assert aliases(project) == {"champion": 1, "challenger": 2}
    with pytest.raises(RegistryError, match="has no version 9; it has: 1, 2"):
        promotion.promote(project, name(project), "9")


@pytest.mark.slow
def test_rollback_refuses_a_deleted_version(project: Project, train: Train) -> None:
    train(NOTHING)
    register(project)
    train(EVERYTHING)
    register(project)
    Store.open(project.root).client.delete_model_version(name(project), "1")
    with pytest.raises(RegistryError, match="has no version 1; it has: 2"):
        Store.open(project.root).models.roll_back(name(project))
    assert aliases(project) == {"champion": 2}
