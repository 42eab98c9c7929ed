"""Tests of the results of `make demo` in a fresh clone.

All tests share one run, in the order given here.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate

from doc_blocks import run_by
from fresh_clone import Demo

pytestmark = [pytest.mark.demo, pytest.mark.slow]

BAND_SETS = ("3band", "7band")  # see the fixture


def running(output: str) -> set[str]:
    """Return the stages that a `dvc repro` ran."""
    return set(re.findall(r"Running stage '([^']+)'", output))


def test_demo_prints_the_paths_of_its_results(demo: Demo) -> None:
    assert "reports/index.html" in demo.output
    assert "talud ui" in demo.output
    assert (demo.root / "reports" / "index.html").stat().st_size > 100_000
    for band_set in BAND_SETS:
        folder = demo.root / "predictions" / band_set / "synthetic_liboriana"
        assert {file.name for file in folder.iterdir()} >= {
            "probability.tif",
            "landslides.tif",
            "landslides.gpkg",
            "quicklook.png",
            "summary.html",
            "prediction.json",
            "timings.json",
        }


def test_adapted_maps_are_scored_or_their_absence_explained(demo: Demo) -> None:
    report = (demo.root / "reports" / "index.html").read_text()
    for band_set in BAND_SETS:
        folder = demo.root / "predictions" / band_set / "synthetic_liboriana.adapted"
        record = json.loads((folder / "adaptation.json").read_text())
        scores = json.loads((demo.root / "evaluation" / f"{band_set}.scores.json").read_text())
        metrics = json.loads((demo.root / "evaluation" / f"{band_set}.json").read_text())
        assert [one["model"] for one in record["tried"]] == ["as it is", "bands aligned", "bands and layers aligned"]
        assert (folder / "landslides.tif").is_file() == record["adapted"] == ("adapted" in metrics)
        assert set(scores["adapted"]) == ({"synthetic_liboriana"} if record["adapted"] else set())
        assert (f"{band_set}, adapted" if record["adapted"] else record["reason"].split(";")[0]) in report
        other = demo.root / "predictions" / band_set / "synthetic_argelia.adapted"
        assert [file.name for file in other.iterdir()] == ["adaptation.json"]


@pytest.mark.parametrize("band_set", BAND_SETS)
def test_champion_gives_the_same_map_as_the_pipeline(demo: Demo, band_set: str, tmp_path: Path) -> None:
    uri = f"models:/landslide-unet-{band_set}@champion"
    result = demo.run(f"talud predict {uri} stacks/synthetic_liboriana.tif --out {tmp_path}/map")
    assert result.returncode == 0, result.stderr
    first, second = (
        rasterio.open(folder / "probability.tif").read(1)
        for folder in (tmp_path / "map", demo.root / "predictions" / band_set / "synthetic_liboriana")
    )
    assert np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    stated = json.loads((tmp_path / "map" / "prediction.json").read_text())
    assert stated["model"]["name"] == f"landslide-unet-{band_set}"
    compared = [one["band"] for one in stated["domain"]["bands"] if "−" in one["band"]]
    assert compared == ["red − green", "green − blue"] + ["vv_pre − vv_post"] * (band_set == "7band")
    assert cog_validate(tmp_path / "map" / "landslides.tif")[0]
    assert len(gpd.read_file(tmp_path / "map" / "landslides.gpkg", layer="landslides")) > 10


def test_models_of_more_than_three_bands_have_skill(demo: Demo) -> None:
    for band_set in BAND_SETS:
        scores = json.loads((demo.root / "evaluation" / f"{band_set}.scores.json").read_text())
        transfer = scores["areas"]["synthetic_liboriana"]
        share = (transfer["tp"] + transfer["fn"]) / sum(transfer[count] for count in ("tp", "fp", "fn", "tn"))
        everything = 2 * share / (1 + share)  # F1 of the map that calls every pixel a landslide
        assert transfer["f1"] > 2 * everything


def test_dvc_shows_metrics_and_plots(demo: Demo) -> None:
    shown = demo.run("dvc metrics show --json")
    (found,) = json.loads(shown.stdout).values()
    scores = {"f1", "precision", "recall"}
    for band_set in BAND_SETS:
        metrics = found["data"][f"evaluation/{band_set}.json"]["data"]
        assert set(metrics) - {"adapted"} == {"test", "areas"}
        assert set(metrics["test"]) == set(metrics["areas"]["synthetic_liboriana"]) == scores
    plots = demo.run("dvc plots show --open=false --out plots_here 2>&1 || dvc plots show --out plots_here")
    assert (demo.root / "plots_here" / "index.html").is_file(), plots.stdout + plots.stderr
    shutil.rmtree(demo.root / "plots_here")


def test_documented_commands_run(demo: Demo) -> None:
    """Run all commands, of which `make demo` is one; equal blocks of several pages run once."""
    blocks = {
        block.code.partition("#")[0].strip() or block.code: block
        for block in run_by("tests/test_demo.py::test_documented_commands_run")
    }
    assert "make demo" in blocks
    for block in blocks.values():
        script = demo.root / "documented_block"
        script.write_text(block.code)
        result = demo.run(f"{'python' if block.language == 'python' else 'bash -euo pipefail'} {script.name}")
        script.unlink()
        assert result.returncode == 0, f"{block.page}:{block.line}: {result.stderr}"
        assert not running(result.stdout)


def test_training_depends_only_on_its_search_and_versions(demo: Demo) -> None:
    trainings = {f"train@{band_set}" for band_set in BAND_SETS}
    for file, change, expected in (
        (demo.root / "params.yaml", ("epochs: 150", "epochs: 151"), set()),
        (demo.root / "versions.yaml", ("training: ", "training: 9"), trainings),
        (demo.root / "src" / "talud" / "networks" / "unet.py", ('"""', '""" Reworded. '), set()),
    ):
        before = file.read_text()
        assert change[0] in before
        file.write_text(before.replace(*change, 1))
        changed = json.loads(demo.run("dvc status --json").stdout)
        file.write_text(before)
        assert trainings & set(changed) == expected


def test_changed_gate_makes_only_register_stale(demo: Demo) -> None:
    registrations = {f"register@{band_set}" for band_set in BAND_SETS}
    path = demo.root / "params.yaml"
    before = path.read_text()
    for change, expected in (
        (("epochs: 150", "epochs: 151"), set()),
        (("hysteresis_low: null", "hysteresis_low: 0.3"), set()),
        (("megabytes: 500", "megabytes: 400"), registrations),
    ):
        assert change[0] in before
        path.write_text(before.replace(*change, 1))
        changed = json.loads(demo.run("dvc status --json").stdout)
        path.write_text(before)
        assert registrations & set(changed) == expected


def test_changed_transfer_inventory_triggers_no_training(demo: Demo) -> None:
    path = demo.root / "data" / "synthetic_liboriana" / "inventory.gpkg"
    inventory = gpd.read_file(path)
    path.unlink()
    inventory.iloc[:-5].to_file(path, driver="GPKG")
    result = demo.run("dvc repro")
    assert result.returncode == 0, result.stderr
    evaluations = {f"evaluate@{band_set}" for band_set in BAND_SETS}
    registrations = {f"register@{band_set}" for band_set in BAND_SETS}
    baselines = {f"baseline@{band_set}" for band_set in BAND_SETS}
    stages = {"stack@synthetic_liboriana", "report"} | evaluations | registrations | baselines
    assert running(result.stdout) == stages
    assert "epochs" not in result.stdout


def test_deleted_store_is_restored_from_dvc_outputs(demo: Demo) -> None:
    (demo.root / "mlflow.db").unlink()
    shutil.rmtree(demo.root / "mlartifacts")
    result = demo.run("talud register")
    assert result.returncode == 0, result.stderr
    for band_set in BAND_SETS:
        registration = json.loads((demo.root / "registered" / f"{band_set}.json").read_text())
        assert (registration["version"], registration["alias"]) == ("1", "champion")


def test_store_copied_with_its_project_is_detected(demo: Demo, tmp_path: Path) -> None:
    shutil.copytree(demo.root, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns(".venv", ".dvc", "data"))
    command = "talud predict models:/landslide-unet-3band@champion stacks/synthetic_liboriana.tif --out maps"
    result = demo.run(f"cd {tmp_path}/copy && {command}")
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "mlflow.db" in result.stderr
    assert not (tmp_path / "copy" / "maps").exists()
