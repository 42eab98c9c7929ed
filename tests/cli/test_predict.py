"""Tests of `talud predict`: files, messages and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pyogrio
import pytest
import rasterio

from stack_files import noise, write_stack
from talud import load_model
from talud.contract import Difference
from talud.engine.model_file import save_model
from talud.registry import Store

PRODUCTS = {
    "probability.tif", "probability.qml", "landslides.tif", "landslides.qml", "landslides.gpkg", "quicklook.png",
    "summary.html", "prediction.json", "timings.json",
}  # fmt: skip
ABSENT = ("tensorflow", "keras", "tf2onnx", "dvc", "matplotlib")


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    values = noise(60, 70)
    values[0, :15] = float("nan")
    return write_stack(tmp_path / "stack.tif", values)


@pytest.mark.slow
def test_predict_writes_the_products_and_prints_a_summary(talud, tiny_model: Path, stack: Path, tmp_path: Path) -> None:
    code, out, err = talud("predict", tiny_model, stack, "--out", tmp_path / "map", "--tile", 32, "--threshold", 0.4)
    assert (code, err) == (0, "")
    assert {path.name for path in (tmp_path / "map").iterdir()} == PRODUCTS
    record = json.loads((tmp_path / "map/prediction.json").read_text())
    assert record["threshold"] == 0.4
    assert record["tiles"] == 6
    assert f"{record['landslides']:,} landslides, {record['landslide_area_m2'] / 10_000:,.1f} ha" in out
    assert "not mapped: 25.0% of the raster" in out
    assert "no data: red: 25.0%" in out
    assert "domain: the model holds no histograms" in out
    assert "provider: CPUExecutionProvider" in out
    assert str(tmp_path / "map") in out


@pytest.mark.parametrize(("edges", "advised"), [((400.0, 500.0), True), ((-500.0, 500.0), False)])
def test_predict_suggests_adapt_for_unfamiliar_colours(
    talud, tiny_model: Path, stack: Path, tmp_path: Path, edges: tuple[float, float], advised: bool
) -> None:
    contract = load_model(tiny_model).contract
    learned = (Difference(bands=("red", "green"), edges=edges, shares=(1.0,)),)
    path = tmp_path / "hued.onnx"
    save_model(onnx.load(tiny_model), contract.replace(differences=learned), path)
    code, out, err = talud("predict", path, stack, "--out", tmp_path / "map")
    assert (code, err) == (0, "")
    assert ("red − green: overlap 0%" in out) == ("talud adapt" in out) == advised


@pytest.mark.parametrize(
    ("model", "raster", "message"),
    [
        ("missing.onnx", "stack.tif", "missing.onnx: no such file"),
        ("stack.tif", "stack.tif", "stack.tif: is not a model"),
        (None, "missing.tif", "missing.tif: cannot be read"),
        (None, "other.tif", "has no band green"),
    ],
)
def test_predict_reports_user_errors_on_one_line(
    talud, tiny_model: Path, stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    model: str | None, raster: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_stack(tmp_path / "other.tif", noise(9, 9), ("red", "nir", "blue"))
    code, out, err = talud("predict", model or tiny_model, raster, "--out", "map")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("talud: ")
    assert message in err
    assert not (tmp_path / "map").exists()


@pytest.mark.slow
def test_predict_minimum_area_applies_to_polygons_and_geojson(
    talud, tiny_model: Path, stack: Path, tmp_path: Path
) -> None:
    options = ["--threshold", 0.45, "--geojson", "--minimum-area"]
    talud("predict", tiny_model, stack, "--out", tmp_path / "all", *options, 0)
    code, out, _ = talud("predict", tiny_model, stack, "--out", tmp_path / "map", *options, 400)
    everything, kept = (
        pyogrio.read_dataframe(tmp_path / name / "landslides.gpkg", layer="landslides") for name in ("all", "map")
    )
    assert code == 0
    assert 0 < len(kept) < len(everything)
    assert kept["area_m2"].tolist() == [area for area in everything["area_m2"] if area >= 400]
    assert f"excluded: {len(everything) - len(kept)} smaller than 400 m²" in out
    geojson = json.loads((tmp_path / "map/landslides.geojson").read_text())
    assert [each["properties"]["area_m2"] for each in geojson["features"]] == kept["area_m2"].tolist()
    record = json.loads((tmp_path / "map/prediction.json").read_text())
    found = record["landslides"], record["minimum_area_m2"], record["left_out"]
    assert found == (len(kept), 400, len(everything) - len(kept))
    rasters = [(tmp_path / name / "landslides.tif").read_bytes() for name in ("all", "map")]
    assert rasters[0] == rasters[1]  # the minimum area only applies to polygons


@pytest.mark.slow
def test_predict_prints_the_error_of_a_smaller_halo(talud, tiny_model: Path, stack: Path, tmp_path: Path) -> None:
    run = ("predict", tiny_model, stack, "--tile", 16, "--out")
    _, out, _ = talud(*run, tmp_path / "unknown", "--halo", 6)
    assert "halo: 8 instead of 28: probabilities differ by an amount that was not measured for this model" in out
    _, out, _ = talud(*run, tmp_path / "exact", "--halo", 500)
    assert "instead of" not in out
    proto = onnx.load(tiny_model)
    stated = load_model(tiny_model).contract.replace(halo_errors={8: 0.00312})
    onnx.helper.set_model_props(proto, stated.to_metadata())
    onnx.save(proto, tmp_path / "measured.onnx")
    _, out, _ = talud("predict", tmp_path / "measured.onnx", *run[2:], tmp_path / "known", "--halo", 8, "--batch", 2)
    assert "halo: 8 instead of 28: probabilities differed by up to 3.1e-03 on windows of the training areas" in out


def test_predict_fails_if_the_provider_is_unavailable(talud, tiny_model: Path, stack: Path, tmp_path: Path) -> None:
    code, out, _ = talud("predict", tiny_model, stack, "--out", tmp_path / "cpu", "--provider", "cpu")
    assert code == 0
    assert "provider: CPUExecutionProvider" in out
    if load_model(tiny_model).provider == "CUDAExecutionProvider":
        pytest.skip("there is a CUDA device here")
    code, out, err = talud("predict", tiny_model, stack, "--out", tmp_path / "map", "--provider", "cuda")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the provider cuda was requested, but" in err
    assert not (tmp_path / "map").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--tile", "0"],
        ["--tile", "much"],
        ["--halo", "-1"],
        ["--batch", "0"],
        ["--threshold", "high"],
        ["--minimum-area", "-1"],
        ["--provider", "tpu"],
        ["--workers", "0"],
        ["--workers", "2", "--scheduler", "tcp://127.0.0.1:8786"],
        ["--nothing", "3"],
    ],
)
def test_predict_exits_with_2_on_wrong_usage(talud, tiny_model: Path, stack: Path, wrong: list[str]) -> None:
    code, out, err = talud("predict", tiny_model, stack, "--out", "map", *wrong)
    assert (code, out) == (2, "")
    assert wrong[0] in err


@pytest.mark.slow
def test_predict_finds_a_registered_model_in_the_project(
    talud, tiny_model: Path, stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = tmp_path / "project"
    (project / "below").mkdir(parents=True)
    (project / "params.yaml").write_text("seed: 1\n")
    tags = {"band_set": "3band"}
    store = Store.open(project, create=True)
    with store.runs.study("3band", tags) as parent, store.runs.trial(parent, "one", {}, tags) as trial:
        trial.log_scores({"f1": 0.5})
    made = store.models.register("landslide-unet-3band", onnx.load(tiny_model), trial.run_id, "a" * 64)
    store.models.set_alias(made, "champion")

    monkeypatch.chdir(project / "below")
    code, out, _ = talud("predict", "models:/landslide-unet-3band@champion", stack, "--out", "map")
    assert code == 0
    assert "model: landslide-unet-3band, version 1;" in out
    with rasterio.open("map/probability.tif") as dataset:
        tags = dataset.tags()
    assert (tags["TALUD_MODEL"], tags["TALUD_VERSION"]) == ("landslide-unet-3band", "1")

    code, _, err = talud("predict", "models:/landslide-unet-3band@best", stack, "--out", "map")
    assert (code, err.count("\n")) == (1, 1)
    assert "champion" in err


@pytest.mark.slow
def test_predict_works_with_runtime_libraries_only(tiny_model: Path, stack: Path, tmp_path: Path) -> None:
    """Run in a subprocess in which the libraries for training cannot be imported."""
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import talud, talud.products.prediction
from talud.cli.main import main
outcome = talud.predict({str(tiny_model)!r}, {str(stack)!r}, {str(tmp_path / "python")!r})
sys.argv = ["talud", "predict", {str(tiny_model)!r}, {str(stack)!r}, "--out", {str(tmp_path / "command")!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
assert "mlflow" not in sys.modules, "a model file needs no registry, and its import half of the start"
for name in {ABSENT!r}:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(name)
print("done")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "done"
    for folder in ("python", "command"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == PRODUCTS
