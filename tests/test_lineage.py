"""Tests of the lineage of maps and models with real git, DVC and MLflow."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyogrio
import pytest
import rasterio
import yaml

from command_line import Run
from fresh_clone import clone, run_shell
from source_files import CORNER, UTM, write_raster
from talud.data.stack_record import data_version
from talud.engine.runtime import Model
from talud.files import md5
from talud.project import Project, current_commit
from talud.registry import Store

VENV = Path(sys.prefix)
SIDE = 64
ENVIRONMENT = {
    "DVC_NO_ANALYTICS": "true",
    "GIT_AUTHOR_NAME": "tests",
    "GIT_AUTHOR_EMAIL": "tests@localhost",
    "GIT_COMMITTER_NAME": "tests",
    "GIT_COMMITTER_EMAIL": "tests@localhost",
}
PARAMS = {
    "seed": 7,
    "areas": {
        "home": {"role": "training", "folder": "data/home", "event": "2014-11-02"},
        "away": {"role": "transfer", "folder": "data/away"},
    },
    "band_sets": {"3band": ["red", "green", "blue"]},
    "stack": {"overlap": "allow"},  # both areas have the same extent
    "split": {"block": 32, "patch": 16, "stride": 16},
    "training": {"depth": 2},
    "recipe": "study",
    "recipes": {"study": {}},
    "reference": None,
    "search": "one",
    "searches": {"one": {"filters": [4], "learning_rate": [0.001], "batch_size": [8], "epochs": 1}},
}


@dataclass(frozen=True)
class CorrectedProject:
    """Project whose inventory was corrected after training, with a map.

    Attributes:
        root: root of the project.
        map: GeoPackage of the map, moved and renamed.
        trained: commit at which the model was trained.
        data: MD5 of each source file, the stack and the mask at that commit.
        status: output of `dvc status` before and after the corrected stack was made.
    """

    root: Path
    map: Path
    trained: str
    data: dict[str, str]
    status: tuple[dict[str, Any], dict[str, Any]]


def shell(command: str, root: Path) -> str:
    result = run_shell(command, root, VENV, **ENVIRONMENT)
    assert result.returncode == 0, f"{command}: {result.stdout[-2000:]}{result.stderr[-2000:]}"
    return result.stdout.strip()


def digests(root: Path) -> dict[str, str]:
    """Return the MD5 of the source files, and of the training stack and mask."""
    files = [*(root / "data").rglob("*.*"), root / "stacks/home.tif", root / "stacks/home.mask.tif"]
    return {path.relative_to(root).as_posix(): md5(path) for path in files}


def write_sources(folder: Path, seed: int) -> None:
    import geopandas
    import shapely

    pixels = np.random.default_rng(seed).integers(30, 220, (3, SIDE, SIDE)).astype(np.uint8)
    write_raster(folder / "optical.tif", pixels)
    left, top = CORNER
    squares = [shapely.box(left + x, top - x - 90, left + x + 90, top - x) for x in (100, 300, 500)]
    pyogrio.write_dataframe(geopandas.GeoDataFrame(geometry=squares, crs=UTM), folder / "inventory.gpkg")


def train(project: Project, tiny_model: Path) -> None:
    """Store and register a model as after training, with a run and a contract."""
    from talud.training import export

    store = Store.open(project.root, create=True)
    version, commit = data_version(project, ("home",)), current_commit(project.root)
    tags = {"band_set": "3band", "search": "one", "data_version": version, "commit": commit}
    choice = {"filters": 4, "learning_rate": 0.001}
    with (
        store.runs.study("3band · one", tags) as parent,
        store.runs.trial(parent, "4 filters", choice, tags) as trial,
    ):
        trial.log_scores({"f1": 0.5, "precision": 0.5, "recall": 0.5, "iou": 0.3})
    stated = {
        "name": "3band",
        "data_version": version,
        "commit": commit,
        "run_id": trial.run_id,
        "areas": ("home",),
        "stack": {"resolution": "12.5"},
        "hyperparameters": {"filters": 4, "learning_rate": 0.001, "depth": 2},
    }
    contract = Model.load(tiny_model).contract.replace(**stated)
    project.model("3band").parent.mkdir(exist_ok=True)
    export.save_model(onnx.load(tiny_model), contract, project.model("3band"))
    model = onnx.load(project.model("3band"))
    version = store.models.register("landslide-unet-3band", model, trial.run_id, contract.origin.weights)
    store.models.describe(version, {"weights": contract.origin.weights})
    store.models.set_alias(version, "champion")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> CorrectedProject:
    folder = tmp_path_factory.mktemp("lineage")
    root = clone(folder / "project")
    for name in ("data.dvc", "sample-data", "params.yaml"):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    write_sources(root / "data/home", 1)
    write_sources(root / "data/away", 2)
    shell(f"dvc remote add --default --force storage {folder}/remote && dvc add --quiet data", root)
    shell("git add --all && git commit --quiet --message 'Our basins'", root)
    shell("dvc repro --quiet stack@home stack@away && dvc push --quiet data.dvc", root)
    project = Project.find(root)
    train(project, tiny_model)
    trained, data = shell("git rev-parse HEAD", root), digests(root)
    shell("git add dvc.lock && git commit --quiet --message 'Trained'", root)
    uri, raster = "models:/landslide-unet-3band@champion", "stacks/away.tif"
    shell(f"talud predict {uri} {raster} --out {folder}/maps/away --threshold 0.4", root)
    shell(f"talud predict models/3band.onnx {raster} --out predictions/3band/away", root)
    moved = folder / "elsewhere" / "slides of may.gpkg"
    moved.parent.mkdir()
    shutil.copy(folder / "maps/away/landslides.gpkg", moved)

    edits = pyogrio.read_dataframe(root / "data/home/inventory.gpkg").iloc[:2]
    pyogrio.write_dataframe(edits, folder / "edits.gpkg")
    said = shell(f"talud inventory import {folder}/edits.gpkg --area home", root)
    project.trials("3band").write_text("{}")
    shell("dvc commit --quiet --force train@3band", root)  # as if DVC had run the training
    add, commit, repro = (line.strip() for line in said.splitlines()[-3:])
    assert repro == "dvc repro"
    shell(f"{add} --quiet && {commit} --quiet", root)
    before = json.loads(shell("dvc status --json", root))
    shell("dvc repro --quiet stack@home stack@away && dvc push --quiet data.dvc", root)
    after = json.loads(shell("dvc status --json", root))
    shell("git add dvc.lock && git commit --quiet --message 'Corrected'", root)
    return CorrectedProject(root, moved, trained, data, (before, after))


@pytest.fixture
def lineage_of(
    project: CorrectedProject, talud: Run, monkeypatch: pytest.MonkeyPatch
) -> Callable[[object], dict[str, Any]]:
    """Return a function that runs `talud lineage --json` in the project."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(project.root)

    def ask(what: object) -> dict[str, Any]:
        code, out, err = talud("lineage", what, "--json")
        assert (code, err) == (0, "")
        found: dict[str, Any] = json.loads(out)
        return found

    return ask


pytestmark = pytest.mark.slow


def test_lineage_of_a_moved_map_restores_the_exact_data(
    project: CorrectedProject, lineage_of: Callable[[object], dict[str, Any]], tmp_path: Path
) -> None:
    assert digests(project.root)["data/home/inventory.gpkg"] != project.data["data/home/inventory.gpkg"]
    answer = lineage_of(project.map)
    (area,) = answer["data"]["areas"]
    assert (area["area"], area["stack_md5"]) == ("home", project.data["stacks/home.tif"])
    assert area["mask_md5"] == project.data["stacks/home.mask.tif"]
    assert answer["data"]["commit"] == answer["commit"] == project.trained
    assert answer["data"]["doubts"] == answer["unknown"] == []

    clean = tmp_path / "clean"
    shell(f"git clone --quiet {project.root} {clean}", tmp_path)
    for command in answer["data"]["restore"]:
        shell(command, clean)
    assert digests(clean) == project.data
    tree = json.loads(shell("dvc list --json --show-hash --rev HEAD . data/home", clean))
    assert {entry["path"]: entry["md5"] for entry in tree}["inventory.gpkg"] == project.data["data/home/inventory.gpkg"]


def test_lineage_states_model_run_parameters_and_raster(
    project: CorrectedProject, lineage_of: Callable[[object], dict[str, Any]]
) -> None:
    answer = lineage_of(project.map)
    assert (answer["model"]["name"], answer["model"]["version"]) == ("landslide-unet-3band", "1")
    assert answer["registered"] == {"models:/landslide-unet-3band/1": "champion"}
    assert (answer["run"]["name"], answer["run"]["run_id"]) == ("4 filters", answer["run_id"])
    assert answer["parameters"] == {"filters": 4, "learning_rate": 0.001, "depth": 2}
    assert answer["mapped"]["raster"] == "away.tif"
    assert answer["mapped"]["threshold"] == "0.4"
    assert answer["mapped"]["sources"] == f"optical {project.data['data/away/optical.tif']}"
    assert len(answer["mapped"]["digest"]) == 64


def test_all_files_of_a_map_have_the_same_lineage(
    project: CorrectedProject, lineage_of: Callable[[object], dict[str, Any]], tmp_path: Path
) -> None:
    folder = project.map.parent.parent / "maps/away"
    expected = lineage_of(project.map)
    for path in (folder, *(folder / name for name in ("prediction.json", "probability.tif", "landslides.tif"))):
        assert {**lineage_of(path), "asked": ""} == {**expected, "asked": ""}
    with rasterio.open(folder / "probability.tif") as dataset:
        profile, pixels = dataset.profile, dataset.read()
    with rasterio.open(tmp_path / "bare.tif", "w", **profile) as writer:
        writer.write(pixels)
    shutil.copy(folder / "landslides.gpkg", tmp_path / "kept.gpkg")
    assert lineage_of(tmp_path / "kept.gpkg")["model"] == expected["model"]


@pytest.mark.parametrize("reference", ["landslide-unet-3band", "models:/landslide-unet-3band/1", "models/3band.onnx"])
def test_lineage_of_a_model_lists_its_maps(
    project: CorrectedProject, lineage_of: Callable[[object], dict[str, Any]], reference: str
) -> None:
    answer = lineage_of(reference)
    assert (answer["kind"], answer["data"]["commit"]) == ("model", project.trained)
    maps = {entry["folder"]: entry["state"] for entry in answer["maps"]}
    assert maps == {"predictions/3band/away": "there", str(project.map.parent.parent / "maps/away"): "there"}
    assert answer["parameters"]["depth"] == 2


@pytest.fixture
def records(project: CorrectedProject) -> Iterator[Path]:
    """Return the folder of map records; records and maps are restored afterwards."""
    folder = project.root / ".talud/maps"
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    yield folder
    if folder.parent.is_file():
        folder.parent.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    shutil.rmtree(project.root / "maps", ignore_errors=True)


def test_deleted_and_replaced_maps_are_marked(
    project: CorrectedProject, lineage_of: Callable[[object], dict[str, Any]], talud: Run, records: Path
) -> None:
    for place in ("one", "two"):
        assert talud("predict", "models/3band.onnx", "stacks/home.tif", "--out", f"maps/{place}")[0] == 0
    shutil.rmtree(project.root / "maps/one")
    assert talud("predict", "models/3band.onnx", "stacks/away.tif", "--out", "maps/two")[0] == 0
    found = lineage_of("models/3band.onnx")["maps"]
    states = {(entry["folder"], entry["statement"]["raster"]["raster"]): entry["state"] for entry in found}
    assert states["maps/one", "home.tif"] == "gone"
    assert states["maps/two", "home.tif"] == "another map"
    assert states["maps/two", "away.tif"] == "there"


def test_maps_on_other_machines_are_marked(lineage_of: Callable[[object], dict[str, Any]], records: Path) -> None:
    (path,) = records.iterdir()
    entry = json.loads(path.read_text()) | {"machine": "elsewhere", "folder": "/data/maps/away"}
    (records / "theirs.json").write_text(json.dumps(entry))
    states = {one["folder"]: (one["state"], one["machine"]) for one in lineage_of("landslide-unet-3band")["maps"]}
    assert states["/data/maps/away"] == ("on another machine", "elsewhere")


def test_damaged_records_are_skipped(lineage_of: Callable[[object], dict[str, Any]], records: Path) -> None:
    (path,) = records.iterdir()
    whole = json.loads(path.read_text())
    for number, content in enumerate([{**whole, "raster": "a name"}, [], dict.fromkeys(whole, 1), {}]):
        (records / f"damaged{number}.json").write_text(json.dumps(content))
    (records / "damaged.json").write_bytes(b"\xff{")
    assert len(lineage_of("models/3band.onnx")["maps"]) == 2


def test_map_is_complete_if_it_cannot_be_recorded(
    project: CorrectedProject, talud: Run, monkeypatch: pytest.MonkeyPatch, records: Path
) -> None:
    monkeypatch.chdir(project.root)
    shutil.rmtree(records.parent)
    records.parent.write_text("a file in the way")
    code, _, err = talud("predict", "models/3band.onnx", "stacks/away.tif", "--out", "maps/three")
    assert code == 0
    assert err.splitlines()[-1].startswith("talud: warning: the map was not recorded, so talud lineage cannot ")
    assert (project.root / "maps/three/prediction.json").is_file()


def test_correction_invalidates_only_dependent_stages(project: CorrectedProject) -> None:
    before, after = project.status
    assert "stack@home" in before
    assert "stack@away" not in before | after
    assert "train@3band" not in before  # the stack has not been made again yet
    assert any("stacks/training" in str(change) for change in after["train@3band"])


def test_commit_with_other_sources_raises_a_doubt(project: CorrectedProject, tmp_path: Path) -> None:
    from talud.engine.model_file import read_contract
    from talud.lineage.trace import find_data

    version = read_contract(project.root / "models/3band.onnx").origin.data_version
    corrected = shell("git rev-parse HEAD", project.root)
    (doubt,) = find_data(project.root, version, corrected).doubts
    assert f"{corrected[:12]} has other sources of home" in doubt
    shell(f"git clone --quiet {project.root} {tmp_path}/clone", tmp_path)
    (doubt,) = find_data(tmp_path / "clone", version, corrected).doubts  # without a cache
    assert "is not proven" in doubt
    assert not find_data(tmp_path / "clone", version, project.trained).doubts


def test_uncommitted_data_are_found_in_the_next_commit(project: CorrectedProject, talud: Run, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shell(f"git clone --quiet {project.root} {root}", tmp_path)
    from talud.engine.model_file import read_contract
    from talud.lineage.trace import find_data

    version = read_contract(project.root / "models/3band.onnx").origin.data_version
    found = find_data(root, version, f"{project.trained}+changes")
    followed = shell(f"git rev-list --reverse {project.trained}..HEAD -- dvc.lock", root).split()[0]
    assert found.commit == followed
    assert any("uncommitted changes" in doubt for doubt in found.doubts)
    assert found.tracked == find_data(root, version, project.trained).tracked

    nowhere = find_data(root, "0" * 32, "f" * 40)
    assert (nowhere.areas, nowhere.commit, nowhere.restore) == ((), "", ())
    assert len(nowhere.doubts) == 2
    assert not find_data(root, "0" * 32, "--help").restore


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nowhere.tif", r"nowhere\.tif: no such file"),
        ("stacks/home.tif", r"does not state its model"),
        ("params.yaml", r"cannot be read as a raster"),
        ("src", r"contains no map"),
        ("stacks/training/home.json", r"is not the record of a map"),
        ("data/home/inventory.gpkg", r"does not state its model"),
        ("landslide-unet-5band", r"no registered model 'landslide-unet-5band'"),
        ("landslide-unet-3band/7", r"has no version 7"),
    ],
)
def test_files_without_lineage_are_rejected_in_one_line(
    project: CorrectedProject, talud: Run, monkeypatch: pytest.MonkeyPatch, what: str, said: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(project.root)
    code, out, err = talud("lineage", what)
    assert (code, out, len(err.strip().splitlines())) == (1, "", 1)
    assert re.search(said, err)


def test_lineage_without_the_model_uses_map_and_git(
    project: CorrectedProject, talud: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Store.open(tmp_path, create=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(project.root)
    (project.root / "models").rename(tmp_path / "models")
    try:
        code, out, err = talud("lineage", project.map, "--json")
    finally:
        (tmp_path / "models").rename(project.root / "models")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert (answer["run"], answer["registered"], answer["parameters"]) == (None, {}, {})
    assert answer["data"]["commit"] == project.trained
    assert len(answer["unknown"]) == 3  # run, version, parameters
    assert all("the store" in line for line in answer["unknown"])


def test_lineage_outside_a_project_lists_unknown_facts(
    project: CorrectedProject, talud: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    code, out, err = talud("lineage", project.map)
    assert (code, err) == (0, "")
    assert f"commit: {project.trained}" in out
    unknown = [line for line in out.splitlines() if line.startswith("not known: ")]
    assert any("no model store" in line for line in unknown)
    assert any("the data's hashes" in line for line in unknown)
    assert list(tmp_path.iterdir()) == []
