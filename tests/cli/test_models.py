"""Tests of `talud models` and `talud register` on a project with a store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from rio_cogeo import cog_validate
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from small_projects import EVERYTHING, HALF, NOTHING, SOMETHING, pixels, write_area, write_model, write_params
from talud.cli.main import app
from talud.engine.runtime import Model
from talud.errors import ParamsError, PromotionError, RegistryError, StudyError
from talud.evaluation import promotion
from talud.project import Project
from talud.raster import open_raster
from talud.registry import Store

pytestmark = pytest.mark.slow  # its tests share a registry of trained networks

VALLEY = (96, 128)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """Return a project whose store holds two versions.

    It has a training area and a transfer area. One version maps most landslides, the other maps all pixels."""
    found = write_params(
        tmp_path_factory.mktemp("project") / "3band", valley={"role": "transfer", "folder": "data/valley"}
    )
    rows, columns = np.indices((128, 128))
    write_area(found, "basin", (rows + columns) % 3 < 2)
    probability = Model.load(tiny_model).probability(pixels(*VALLEY))
    exact = probability >= HALF
    exact[:10] ^= True
    write_area(found, "valley", exact)  # the first model is wrong in ten rows
    write_model(found, tiny_model, HALF)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        promotion.register(found, "3band")
        write_model(found, tiny_model, EVERYTHING)
        promotion.register(found, "3band")
    return found


Talud = Callable[..., Result]


@pytest.fixture
def talud(project: Project, monkeypatch: pytest.MonkeyPatch) -> Talud:
    """Return a function that runs a command in the project."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(project.root)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


NAME = "landslide-unet-3band"


def test_list_shows_every_version_with_its_scores(talud: Talud) -> None:
    found = json.loads(talud("models", "list", "--json").stdout)
    assert [(one["version"], one["commit"]) for one in found] == [("2", "c0ffee"), ("1", "c0ffee")]
    assert sum(one["aliases"] == ["champion"] for one in found) == 1
    assert all(one["registered_by"] and one["created"].startswith("20") for one in found)
    assert found[0]["f1"] == {"validation": 0.6}
    printed = talud("models", "list").stdout
    assert all(part in printed for part in (NAME, "champion", "c0ffee", "validation 0.600", "00000000"))


def test_show_prints_contract_and_gate(talud: Talud) -> None:
    shown = json.loads(talud("models", "show", f"{NAME}/2", "--json").stdout)
    assert shown["version"] == "2"
    assert shown["contract"]["threshold"] == EVERYTHING
    assert [band["name"] for band in shown["contract"]["bands"]] == ["red", "green", "blue"]
    rules = ["parity", "contract", "size", "speed", "skill", "F1 on validation blocks"]
    assert [check["rule"] for check in shown["gate"]["checks"]] == rules
    tiles = shown["tiles"]
    assert tiles["raster_side"] == 4096
    assert tiles["halo"] == shown["contract"]["halo"]
    assert 1 <= tiles["arithmetic"] < 1.1
    assert 10**8 < tiles["memory_bytes"] <= 2 * 10**9
    printed = talud("models", "show", f"models:/{NAME}/2").stdout
    assert f"halo {tiles['halo']} pixels; 4096² in tiles of {tiles['tile']}² within" in printed
    rows = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in printed.splitlines() if "│" in line]
    assert [row for row in rows if row[-1] in ("", "None") and row[0]] == []
    assert all(part in printed for part in (*rules, "filters: 4", "differs from the Keras model by 2.0e-07", "DN"))
    assert f"{NAME}, version" in talud("models", "show", NAME).stdout


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nothing", "no registered model 'nothing'"),
        (f"{NAME}/7", "has no version 7"),
        ("a/b/c", "valid forms are NAME"),
    ],
)
def test_show_lists_known_versions_if_none_matches(talud: Talud, reference: str, message: str) -> None:
    error = talud("models", "show", reference).exception
    assert isinstance(error, RegistryError)
    assert message in str(error)


@pytest.mark.parametrize("reference", [f"{NAME}/1", f"models:/{NAME}/2", f"{NAME}@champion"])
def test_evaluate_scores_a_registered_model_on_an_area(talud: Talud, project: Project, reference: str) -> None:
    version = Store.open(project.root).models.look_up(reference).version
    found = json.loads(talud("evaluate", reference, "valley", "--json").stdout)
    threshold = {"1": HALF, "2": EVERYTHING}[version]
    with open_raster(project.mask("valley")) as mask:
        truth = mask.read(1)
    mapped = Model.load(project.model("3band")).probability(pixels(*VALLEY)) >= threshold
    assert found["f1"] == pytest.approx(f1_score(truth.ravel(), mapped.ravel()), abs=1e-6)
    assert (found["model"]["name"], found["model"]["version"], found["threshold"]) == (NAME, version, threshold)
    assert found["blocks"] == 12


def test_compare_matches_scikit_learn_and_maps_the_differences(talud: Talud, project: Project, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    result = talud("models", "compare", f"{NAME}/1", f"{NAME}/2", "--area", "valley", "--out", out, "--json")
    found = json.loads(result.stdout)
    assert found == json.loads((out / "comparison.json").read_text())
    with open_raster(project.mask("valley")) as mask:
        truth = mask.read(1)
    probability = Model.load(project.model("3band")).probability(pixels(*VALLEY))
    a, b = probability >= HALF, probability >= EVERYTHING
    for letter, mapped in (("A", a), ("B", b)):
        expected = f1_score(truth.ravel(), mapped.ravel())
        assert found["models"][letter]["f1"] == pytest.approx(expected, abs=1e-9)
    difference = found["f1_difference"]
    assert (difference["blocks"], difference["resamples"]) == (12, 2000)
    assert difference["low"] <= difference["estimate"] <= difference["high"]
    assert difference["estimate"] == pytest.approx(found["models"]["A"]["f1"] - found["models"]["B"]["f1"])
    assert (found["pixels"], found["compared_pixels"], found["notes"]) == ("the whole area", 96 * 128, [])

    assert cog_validate(out / "difference.tif")[0]
    with open_raster(out / "difference.tif") as raster:
        classes, tags, colours = raster.read(1), raster.tags(), raster.colormap(1)
    right_a, right_b = (mapped == (truth == 1) for mapped in (a, b))
    expected = np.select([right_a & right_b, right_a, right_b], [0, 1, 2], 3)
    assert np.array_equal(classes, expected)
    assert (tags["TALUD_A_VERSION"], tags["TALUD_B_VERSION"], tags["CLASS_1"]) == ("1", "2", "only A right")
    assert len({colours[value] for value in range(4)}) == 4
    picture = np.asarray(Image.open(out / "difference.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(picture, axis=0)) > 20


def test_compare_prints_a_verdict(talud: Talud) -> None:
    result = talud("models", "compare", f"{NAME}/1", "models/3band.onnx", "--area", "valley")
    assert "A is better than B, by more than chance; 2,000 resamples" in result.stdout
    assert "over 12 blocks; with so few" in result.stdout
    assert "12,288 pixels that both map, 100.0% of those with known truth" in result.stdout
    same = talud("models", "compare", f"{NAME}/1", f"{NAME}/1", "--area", "valley")
    assert "the difference may be due to chance" in same.stdout


def test_compare_excludes_pixels_that_one_model_does_not_map(talud: Talud, project: Project, tmp_path: Path) -> None:
    import rasterio

    path, kept = project.stack("valley"), tmp_path / "kept.tif"
    shutil.copy(path, kept)
    try:
        with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as stack:
            bands = stack.read()
            bands[1, :20] = np.nan
            stack.write(bands)
        found = json.loads(talud("models", "compare", NAME, NAME, "--area", "valley", "--json").stdout)
    finally:
        shutil.copy(kept, path)
    assert (found["compared_pixels"], found["known_pixels"]) == (76 * 128, 96 * 128)


def test_compare_uses_test_blocks_of_a_training_area(
    talud: Talud, project: Project, tiny_model: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "trained.onnx"
    kept = project.model("3band").read_bytes()
    project.stack_record("basin").parent.mkdir(parents=True, exist_ok=True)
    project.stack_record("basin").write_text(json.dumps({"stack_md5": "1", "mask_md5": "2"}))
    try:
        write_model(project, tiny_model, SOMETHING, areas=("basin",)).replace(trained)
    finally:
        project.model("3band").write_bytes(kept)
    found = json.loads(talud("models", "compare", trained, NAME, "--area", "basin", "--json").stdout)
    assert found["pixels"] == "the test blocks"
    assert found["known_pixels"] < 128 * 128 / 2
    assert any("A was trained on basin" in note for note in found["notes"])
    assert any("may have been trained on some of the test blocks" in note for note in found["notes"])


def test_compare_rejects_incomparable_models(talud: Talud, project: Project) -> None:
    error = talud("models", "compare", NAME, NAME, "--area", "vally").exception
    assert isinstance(error, ParamsError)
    assert "no area 'vally'" in str(error)
    with open_raster(project.mask("valley")) as mask:
        truth = mask.read(1) == 1
    kept = project.mask("valley").read_bytes()
    import rasterio

    try:
        with rasterio.open(project.mask("valley"), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
            mask.write(np.full(truth.shape, 255, np.uint8), 1)
        error = talud("models", "compare", NAME, NAME, "--area", "valley").exception
    finally:
        project.mask("valley").write_bytes(kept)
    assert isinstance(error, StudyError)
    assert "no pixel of known truth is mapped by both" in str(error)


def test_promote_and_roll_back(talud: Talud, project: Project, tiny_model: Path) -> None:
    champion = next(one for one in json.loads(talud("models", "list", "--json").stdout) if one["aliases"])
    write_model(project, tiny_model, NOTHING)
    assert "is challenger: worse than the champion" in talud("register").stdout
    refused = talud("models", "promote", NAME, 3)
    assert isinstance(refused.exception, PromotionError)
    assert "version 3 does not pass the gate: F1 on validation blocks: 0.000" in str(refused.exception)
    write_model(project, tiny_model, EVERYTHING * 0.9)  # another version with the same map
    assert "version 4 is challenger: no better than" in talud("register").stdout
    result = talud("models", "promote", NAME, 4)
    assert f"{NAME} version 4 is champion: promoted by hand, in place of version {champion['version']}" in result.stdout
    assert "contract: complete" in result.stdout
    shown = json.loads(talud("models", "show", NAME, "--json").stdout)
    assert (shown["version"], shown["replaced"]) == ("4", champion["version"])
    assert (
        f"version {champion['version']} is champion again, in place of version 4"
        in talud("models", "rollback", NAME).stdout
    )
    assert "set aside" in talud("models", "list").stdout


def test_register_fails_if_a_model_breaks_a_gate_rule(talud: Talud, project: Project, tiny_model: Path) -> None:
    write_model(project, tiny_model, 0.3, parity={})
    result = talud("register", "3band")
    assert isinstance(result.exception, PromotionError)
    assert "the promotion gate failed" in str(result.exception)
    assert "is challenger: failed the gate: parity" in result.stdout
    registered = json.loads(project.registration("3band").read_text())
    assert registered["alias"] == "challenger"


def test_models_reports_a_missing_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    for arguments in (["list"], ["show", NAME], ["rollback", NAME]):
        error = CliRunner().invoke(app, ["models", *arguments]).exception
        assert isinstance(error, RegistryError)
        assert "no model store" in str(error)
    Store.open(tmp_path, create=True)
    (tmp_path / "params.yaml").write_text("{}")
    assert "no model is registered yet" in CliRunner().invoke(app, ["models", "list"]).stdout
