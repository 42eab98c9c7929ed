"""Models registered into a real store: once each, and the champion is the one that maps better today."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from stack_files import noise, write_stack
from talud import load_model, registry
from talud.contract import Contract, variant_path
from talud.errors import ModelError, RegistryError
from talud.evaluation import promotion
from talud.grid import Grid
from talud.inference.runtime import Model
from talud.project import Project
from talud.quantization.int8 import quantized
from talud.raster import Layout, open_raster, writing_cog
from talud.training import export

EVERYTHING, SOMETHING, NOTHING = 0.001, 0.5, 0.999  # thresholds: what the model of random weights calls landslide
PARAMS = {
    "seed": 7,
    "areas": {"basin": {"role": "training", "folder": "data/basin"}},
    "stack": {},
    "split": {"block": 32, "patch": 16, "stride": 16},
    "training": {"depth": 2},
    "search": "demo",
    "searches": {"demo": {"filters": [4], "learning_rate": [0.001], "batch_size": [8], "epochs": 1}},
}


def write_area(project: Project, area: str, landslide: NDArray[np.bool_]) -> None:
    """Write a stack of noise and a mask."""
    height, width = landslide.shape
    grid = Grid(CRS.from_epsg(32618), Affine(12.5, 0, 400_000, 0, -12.5, 650_000), height, width)
    noise = np.random.default_rng(5).uniform(0, 250, (3, height, width)).astype(np.float32)
    bands = Layout("float32", float("nan"), ["red", "green", "blue"], ["DN"] * 3)
    with writing_cog(project.stack(area), grid, bands) as writer:
        writer.write(noise)
    with writing_cog(project.mask(area), grid, Layout("uint8", 255, ["landslide"])) as writer:
        writer.write(landslide.astype(np.uint8), 1)


def write_params(root: Path, **areas: object) -> Project:
    """A project whose one band set has a name of its own, so that tests may share a store."""
    band_sets = {root.name: ["red", "green", "blue"]}
    params = PARAMS | {"areas": PARAMS["areas"] | areas, "band_sets": band_sets}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return Project.find(root)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose store the tests share."""
    root = tmp_path_factory.mktemp("store")
    registry.connect(root, create=True)
    return root


@pytest.fixture
def project(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with one training area, a tenth of it landslide."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    found = write_params(tmp_path)
    rows, _ = np.indices((128, 128))
    write_area(found, "basin", rows % 10 == 0)
    return found


Train = Callable[..., Path]


@pytest.fixture
def train(project: Project, tiny_model: Path) -> Train:
    """Puts a model with another contract where training would put it."""

    def put(threshold: float, **changes: object) -> Path:
        contract = Model.load(tiny_model).contract
        given = {"name": band_set(project), "threshold": threshold, **changes}
        changed = Contract.model_validate(contract.model_dump() | given)
        path = project.model(band_set(project))
        path.parent.mkdir(exist_ok=True)
        export.save(onnx.load(tiny_model), changed, path)
        return path

    return put


def quantize(path: Path, seed: int, **changes: object) -> bytes:
    """Put an int8 variant beside a model, calibrated on noise."""
    stated = {
        "precision": "int8",
        "loss": {"f1": 0.0123, "largest_difference": 0.5, "mean_difference": 0.001},
        **changes,
    }
    contract = Contract.model_validate(Model.load(path).contract.model_dump() | stated)
    graph = quantized(onnx.load(path), noise(32, 32, seed=seed)[np.newaxis])
    export.save(graph, contract, variant_path(path, "int8"))
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
    return dict(registry.connect(project.root).get_registered_model(name(project)).aliases)


def runs(project: Project) -> list[str]:
    client = registry.connect(project.root)
    experiment = client.get_experiment_by_name(registry.EXPERIMENT)
    found = client.search_runs([experiment.experiment_id], f"tags.band_set = '{band_set(project)}'")
    return sorted(run.info.run_name for run in found)


def test_the_first_version_is_the_champion_and_holds_the_file(project: Project, train: Train) -> None:
    path = train(SOMETHING, run_id="1" * 32, commit="c0ffee", scores={"precision": 0.7, "recall": 0.5, "f1": 0.6})
    done = register(project)

    assert (done.name, done.version, done.alias) == (name(project), "1", "champion")
    fetched = registry.fetch(f"models:/{name(project)}@champion", project.root)
    assert Model.load(fetched.path).contract == Model.load(path).contract
    client = registry.connect(project.root)
    version = client.get_model_version(name(project), "1")
    assert version.tags["commit"] == "c0ffee"
    assert float(version.tags["f1_validation"]) == 0.6
    assert version.tags["data_version"] == Model.load(path).contract.data_version
    assert "red, green, blue at 12.5 m" in version.description
    run = client.get_run(done.run_id)
    assert (run.data.tags["restored_from"], run.data.metrics["f1"], run.data.params["filters"]) == ("1" * 32, 0.6, "4")
    assert json.loads(record(project))["reason"] == f"the first version of {name(project)}"


def test_registering_again_changes_nothing(project: Project, train: Train) -> None:
    train(SOMETHING, run_id="1" * 32)
    first = register(project)
    before = runs(project), record(project)
    train(SOMETHING, run_id="2" * 32, commit="another")  # the same model, trained again
    assert register(project) == first
    assert (runs(project), record(project)) == before
    assert len(registry.connect(project.root).search_model_versions(f"name='{name(project)}'")) == 1


def test_files_that_the_store_has_lost_are_put_back(project: Project, train: Train) -> None:
    path = train(SOMETHING)
    done = register(project)
    uri = f"models:/{done.name}@champion"
    shutil.rmtree(registry.fetch(uri, project.root).path.parent)
    with pytest.raises(RegistryError, match=r"files are missing from file:.*, or run talud register"):
        registry.fetch(uri, project.root)
    assert register(project) == done
    assert Model.load(registry.fetch(uri, project.root).path).contract == Model.load(path).contract


def test_a_variant_joins_the_version_of_its_model(
    project: Project, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = train(SOMETHING)
    uri = f"models:/{name(project)}@champion"
    monkeypatch.chdir(tmp_path)
    assert register(project).variants == ()
    with pytest.raises(
        ModelError,
        match=f"version 1: holds no variant of precision int8; run talud quantize models/{band_set(project)}.onnx",
    ):
        load_model(uri, precision="int8")

    content = quantize(path, seed=1)
    done = register(project)
    assert (done.version, done.variants, register(project)) == ("1", ("int8",), done)
    model = load_model(uri, precision="int8")
    assert model.path.read_bytes() == content
    assert model.title == f"{name(project)}, version 1, int8"
    assert load_model(uri).contract == load_model(uri, precision="float32").contract == Model.load(path).contract
    version = registry.connect(project.root).get_model_version(name(project), "1")
    assert version.tags["int8_f1_loss"] == "0.0123"
    assert "int8 variant loses 0.0123 of the F1" in version.description

    predicted = model.predict(write_stack(tmp_path / "stack.tif", noise(40, 50)), tmp_path / "map")
    record = json.loads((tmp_path / "map/prediction.json").read_text())
    assert (record["model"]["version"], record["model"]["precision"]) == ("1", "int8")
    with open_raster(tmp_path / "map/landslides.tif") as classes:
        assert classes.tags()["TALUD_PRECISION"] == "int8"
    assert predicted.landslides > 0


def test_a_variant_of_another_model_stays_out_and_a_new_one_takes_its_place(project: Project, train: Train) -> None:
    quantize(train(SOMETHING), seed=1)
    register(project)
    content = quantize(train(SOMETHING), seed=2)
    assert register(project).variants == ("int8",)
    stored = registry.fetch(f"models:/{name(project)}/1", project.root).path
    assert variant_path(stored, "int8").read_bytes() == content
    train(NOTHING)  # the variant that lies beside it has another threshold
    assert (register(project).version, register(project).variants) == ("2", ())


@pytest.mark.parametrize(
    "change",
    [
        {"data_version": "1" * 32},
        {"hyperparameters": {"filters": 4, "seed": 8}},
        {"halo_errors": {8: 0.01}},  # exported again, by a talud that measures more
    ],
)
def test_other_data_or_parameters_make_another_version_of_equal_weights(
    project: Project, train: Train, change: dict[str, object]
) -> None:
    train(SOMETHING)
    assert register(project).version == "1"
    train(SOMETHING, **change)
    assert (register(project).version, register(project).version) == ("2", "2")


def test_the_better_map_of_todays_blocks_is_the_champion(project: Project, train: Train) -> None:
    train(NOTHING)
    register(project)
    train(EVERYTHING, scores={"precision": 0.0, "recall": 0.0, "f1": 0.0, "iou": 0.0})  # what it says does not count
    better = register(project)
    assert (better.version, better.alias, aliases(project)) == ("2", "champion", {"champion": 2})
    score = better.f1[promotion.VALIDATION]
    assert score["champion"] == 0
    assert score["model"] == pytest.approx(2 * 0.1 / (1 + 0.1), abs=0.01)  # all of a tenth: 2 · P / (1 + P)

    train(NOTHING)  # back to the first
    worse = register(project)
    assert (worse.version, worse.alias, aliases(project)) == ("1", "challenger", {"champion": 2, "challenger": 1})
    assert "worse than the champion, version 2" in worse.reason
    assert register(project) == worse


def test_a_corrected_inventory_lets_the_challenger_win(project: Project, train: Train) -> None:
    train(EVERYTHING)
    register(project)
    path = train(SOMETHING)
    rows, columns = np.indices((128, 128))
    write_area(project, "basin", (rows + columns) % 10 < 9)
    assert register(project).alias == "challenger"
    stack = np.random.default_rng(5).uniform(0, 250, (3, 128, 128)).astype(np.float32)
    write_area(project, "basin", Model.load(path).probability(stack) >= SOMETHING)
    assert (register(project).alias, aliases(project)) == ("champion", {"champion": 2})


def test_an_equal_model_does_not_take_the_champions_place(project: Project, train: Train) -> None:
    train(NOTHING)
    register(project)
    train(0.998)
    equal = register(project)
    assert (equal.alias, aliases(project)) == ("challenger", {"champion": 1, "challenger": 2})
    assert "no better than the champion" in equal.reason


def test_a_gate_area_keeps_a_worse_model_out(tmp_path: Path, project: Project, train: Train) -> None:
    project = write_params(tmp_path, gate={"role": "gate", "folder": "data/gate"})
    train(SOMETHING)
    register(project)
    stack = np.random.default_rng(5).uniform(0, 250, (3, 100, 90)).astype(np.float32)
    exact = Model.load(project.model(band_set(project))).probability(stack) >= SOMETHING
    write_area(project, "gate", exact)  # the gate's landslides are exactly what the champion maps
    train(EVERYTHING)
    done = register(project)
    assert done.f1["gate"]["champion"] == 1
    assert done.f1["gate"]["model"] == pytest.approx(2 * exact.mean() / (1 + exact.mean()), abs=1e-6)
    assert (done.alias, aliases(project)) == ("challenger", {"champion": 1, "challenger": 2})
    assert "on gate" in done.reason


def test_a_champion_that_does_not_fit_todays_stacks_makes_way(project: Project, train: Train) -> None:
    train(EVERYTHING, pixel_size=25.0)
    register(project)
    train(NOTHING)
    done = register(project)
    assert (done.alias, aliases(project)) == ("champion", {"champion": 2})
    assert "cannot be run on the present stacks" in done.reason


def test_a_wiped_store_gets_back_the_whole_study(
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

    client = registry.connect(project.root)
    run = client.get_run(done.run_id)
    assert (run.info.run_name, run.data.metrics["f1"], run.data.params["seed"]) == (study[1], 0.7, "7")
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["restored_from"] == "a" * 32
    assert parent.data.metrics["f1"] == 0.7
    assert "trial b | 0.700 |" in parent.data.tags["mlflow.note.content"]


def test_no_alias_moves_to_a_version_whose_file_is_another(project: Project, train: Train) -> None:
    first = train(NOTHING).read_bytes()
    register(project)
    train(EVERYTHING)
    register(project)
    before = record(project)
    registry.fetch(f"models:/{name(project)}/2", project.root).path.write_bytes(first)
    registry.set_alias(registry.champion(name(project)), "challenger")
    with pytest.raises(RegistryError, match="version 2"):
        register(project)
    assert (aliases(project), record(project)) == ({"challenger": 2}, before)


def test_a_model_that_is_missing_or_of_another_band_set_is_refused(
    project: Project, train: Train, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"talud train {tmp_path.name}"):
        register(project)
    train(SOMETHING, name="7band")
    with pytest.raises(ModelError, match=f"'7band', not '{tmp_path.name}'"):
        register(project)
    assert not project.registration(tmp_path.name).exists()
