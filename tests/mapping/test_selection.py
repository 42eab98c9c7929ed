"""Tests of the automatic choice of a champion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from command_line import Run, runner
from source_files import write_raster
from stack_files import RGB, noise, write_stack
from talud.bands import Group
from talud.contract import Subset
from talud.registry import Store

TERRAIN = ("red", "green", "blue", "slope", "curvature")


def add(root: Path, name: str, file: Path, *, champion: bool = True) -> None:
    """Register a model, as its project would."""
    tags = {"band_set": name}
    store = Store.open(root, create=True)
    with store.runs.study(name, tags) as parent, store.runs.trial(parent, "one", {}, tags) as trial:
        trial.log_scores({"f1": 0.5})
    made = store.models.register(f"landslide-unet-{name}", onnx.load(file), trial.run_id, name * 8)
    if champion:
        store.models.set_alias(made, "champion")


@pytest.fixture(scope="module")
def project(exporter, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with two champions, another version, and a foreign champion."""
    root = tmp_path_factory.mktemp("project")
    (root / "params.yaml").write_text("seed: 1\n")
    client = Store.open(root, create=True).client
    add(root, "5band", exporter(2, TERRAIN))
    add(root, "3band", tiny_model)
    add(root, "radar", exporter(2, (*TERRAIN, "vv_pre")), champion=False)
    client.create_registered_model("somebody-elses")
    client.create_model_version("somebody-elses", "file:///nowhere")
    client.set_registered_model_alias("somebody-elses", "champion", "1")
    values = np.random.default_rng(0).integers(30, 220, (3, 60, 90)).astype(np.uint8)
    write_raster(root / "image.tif", values)
    rows, columns = np.indices((60, 90))
    write_raster(root / "dtm.tif", (1000 + 50 * np.sin(rows / 5) + 40 * np.cos(columns / 7)).astype(np.float32))
    return root


@pytest.fixture
def talud(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line in the project.

    It returns exit code, stdout and stderr.
    """
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(project)

    return runner(monkeypatch, capsys)


def chosen(out: Path) -> str:
    return json.loads((out / "prediction.json").read_text())["model"]["chosen"]


@pytest.mark.slow
def test_sources_are_mapped_by_the_champion_with_most_bands(talud: Run, tmp_path: Path) -> None:
    code, out, err = talud("map", "--optical", "image.tif", "--dtm", "dtm.tif", "--out", tmp_path / "both")
    assert (code, err) == (0, "")
    why = (
        "landslide-unet-5band, version 1: the most bands (5) that the sources support; also fits: landslide-unet-3band"
    )
    assert chosen(tmp_path / "both") == why
    assert f"chosen: {why}\n" in out

    talud("map", "--optical", "image.tif", "--out", tmp_path / "image")
    assert chosen(tmp_path / "image") == (
        "landslide-unet-3band, version 1: the most bands (3) that the sources support; "
        "not: landslide-unet-5band (needs slope, curvature: give --dtm FILE)"
    )


def test_error_lists_the_bands_that_each_champion_lacks(talud: Run, tmp_path: Path) -> None:
    code, out, err = talud("map", "--dtm", "dtm.tif", "--out", tmp_path / "map")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no champion has only bands that the sources support" in err
    for name in ("3band", "5band"):
        assert f"landslide-unet-{name} (needs red, green, blue: give --optical FILE)" in err
    assert not (tmp_path / "map").exists()


def test_champion_of_another_unit_is_not_chosen(talud: Run, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(30, 220, (3, 60, 90)).astype(np.uint8)
    write_raster(tmp_path / "scaled.tif", image, scale=0.01)
    code, _, err = talud("map", "--optical", tmp_path / "scaled.tif", "--out", tmp_path / "map")
    assert (code, err.count("\n")) == (1, 1)
    assert "landslide-unet-3band (red is in reflectance, but" in err


def test_damaged_source_does_not_select_a_smaller_model(talud: Run, tmp_path: Path) -> None:
    (tmp_path / "dtm.tif").write_text("hello")
    code, _, err = talud("map", "--optical", "image.tif", "--dtm", tmp_path / "dtm.tif", "--out", tmp_path / "map")
    assert (code, err.count("\n")) == (1, 1)
    assert "dtm.tif: cannot be read as a raster" in err
    assert not (tmp_path / "map").exists()


@pytest.mark.slow
def test_stack_is_mapped_by_the_champion_with_most_bands(talud: Run, tmp_path: Path) -> None:
    slopes = np.random.default_rng(1).uniform(0, 80, (2, 40, 50)).astype(np.float32)
    all_bands = write_stack(tmp_path / "five.tif", np.concatenate([noise(40, 50), slopes]), TERRAIN)
    code, out, _ = talud("predict", "auto", all_bands, "--out", tmp_path / "five")
    assert (code, "model: landslide-unet-5band, version 1;" in out) == (0, True)
    assert chosen(tmp_path / "five").endswith("that the stack supports; also fits: landslide-unet-3band")
    percent = write_stack(
        tmp_path / "percent.tif", np.concatenate([noise(40, 50), slopes]), TERRAIN, units=(*["DN"] * 3, "percent", "")
    )
    talud("predict", "auto", percent, "--out", tmp_path / "percent")
    assert "landslide-unet-5band (band 'slope' is in percent, the model expects degree" in chosen(tmp_path / "percent")
    code, _, err = talud("predict", "auto", write_stack(tmp_path / "nir.tif", noise(9, 9, 1), ("nir",)), "--out", "map")
    assert (code, err.count("\n")) == (1, 1)
    assert f"landslide-unet-3band (has no band {', '.join(RGB)}; it has nir" in err


@pytest.mark.slow
def test_champion_with_missing_files_is_named(talud: Run, project: Path, exporter, tmp_path: Path) -> None:
    add(project, "lost", exporter(2, (*TERRAIN, "elevation")))
    (file,) = (path for path in (project / "mlartifacts").rglob("*.onnx") if b"elevation" in path.read_bytes())
    file.unlink()
    talud("map", "--optical", "image.tif", "--dtm", "dtm.tif", "--out", tmp_path / "map")
    Store.open(project).client.delete_registered_model("landslide-unet-lost")
    assert "5band, version 1: the most bands (5)" in chosen(tmp_path / "map")
    assert "not: landslide-unet-lost (models:/landslide-unet-lost/1: its file" in chosen(tmp_path / "map")


def test_store_without_a_champion_is_reported(talud: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    Store.open(tmp_path, create=True)
    write_stack(tmp_path / "stack.tif", noise(9, 9))
    monkeypatch.chdir(tmp_path)
    code, _, err = talud("predict", "auto", "stack.tif", "--out", "map")
    assert (code, err.count("\n")) == (1, 1)
    assert "the registry holds no champion of talud; give the model" in err


@pytest.mark.slow
def test_model_with_subsets_is_chosen_if_no_other_fits(talud: Run, project: Path, exporter, tmp_path: Path) -> None:
    rest = [("optical", "terrain"), ("terrain", "sar"), ("terrain",), ("optical",)]
    groups = [tuple(map(Group, one)) for one in (("optical", "terrain", "sar"), *rest)]
    subsets = tuple(
        Subset(groups=one, precision=0.5, recall=0.5, f1=0.5, supported=Group.TERRAIN in one) for one in groups
    )
    bands = (*TERRAIN, "vv_pre", "vv_post")
    flexible = exporter(2, bands, (Group.TERRAIN,), subsets=subsets)
    code, out, err = talud(
        "map", "--model", flexible, "--optical", "image.tif", "--dtm", "dtm.tif", "--out", tmp_path / "a"
    )
    assert (code, err) == (0, "")
    assert "100.0% of the mapped pixels use only optical + terrain: no data: vv_pre, vv_post" in out
    code, out, err = talud("map", "--model", flexible, "--optical", "image.tif", "--out", tmp_path / "b")
    assert (code, err.count("\n")) == (1, 1)
    assert "give --dtm FILE" in err
    add(project, "flexible", flexible)
    talud("map", "--optical", "image.tif", "--dtm", "dtm.tif", "--out", tmp_path / "c")
    assert chosen(tmp_path / "c") == (
        "landslide-unet-5band, version 1: the most bands (5) that the sources support; "
        "also fits: landslide-unet-3band, landslide-unet-flexible"
    )
    talud("map", "--dtm", "dtm.tif", "--out", tmp_path / "d")
    assert chosen(tmp_path / "d").startswith(
        "landslide-unet-flexible, version 1: no champion has only bands that the sources support, but this one also"
    )
