"""Tests of `talud map` with source files in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from command_line import Run
from source_files import write_raster
from talud import load_model
from talud.basin import prepare_stack
from talud.files import md5
from talud.mapping import tiles as mapping
from talud.params import Area

PRODUCTS = {
    "stack.tif", "probability.tif", "probability.qml", "landslides.tif", "landslides.qml", "landslides.gpkg",
    "summary.html", "quicklook.png", "prediction.json", "timings.json",
}  # fmt: skip


@pytest.fixture
def image(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(30, 220, (3, 60, 90)).astype(np.uint8)
    return write_raster(tmp_path / "sources/image.tif", values)


@pytest.fixture
def command(tmp_path: Path, image: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the arguments of a `talud map` of six tiles, outside any project."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return ["map", "--model", tiny_model, "--optical", image, "--out", "maps/here", "--tile", 32, "--threshold", 0.45]


def products(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "timings.json"}


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def interrupt(monkeypatch: pytest.MonkeyPatch, talud: Run, command: list[object], after: int) -> None:
    """Interrupt a map after a number of finished tiles."""
    blocks, tried = mapping._compute_batch, []

    def sometimes(*arguments):
        tried.append(arguments)
        if len(tried) > after:
            raise KeyboardInterrupt
        return blocks(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(mapping, "_compute_batch", sometimes)
        assert talud(*command)[0] == 130


@pytest.mark.slow
def test_map_equals_stack_followed_by_predict(talud: Run, command: list[object], image: Path, tiny_model: Path) -> None:
    code, out, err = talud(*command, "--event", "2015-05-18", "--tta", "--geojson")
    assert (code, err) == (0, "")
    here = Path("maps/here")
    more = {"disagreement.tif", "disagreement.qml", "landslides.geojson"}
    assert {path.name for path in here.iterdir()} == PRODUCTS | more
    assert [path.name for path in Path().rglob("*")] == ["maps", "here", *(path.name for path in here.iterdir())]
    assert "in stack.tif" in out
    talud("stack", "--like", tiny_model, "--optical", image, "--out", "stack.tif")
    talud("predict", tiny_model, "stack.tif", "--out", "map", "--tta")
    assert np.array_equal(read(here / "stack.tif"), read(Path("stack.tif")), equal_nan=True)
    for name in ("probability.tif", "disagreement.tif"):
        assert np.array_equal(read(here / name), read(Path("map") / name), equal_nan=True)
    record = json.loads((here / "prediction.json").read_text())
    sources = f"optical {md5(image)}"
    tags = {key: value for key, value in record["stack"].items() if not key.startswith("TALUD_RASTER")}
    assert tags == {"TALUD_AREA": "here", "TALUD_EVENT": "2015-05-18", "TALUD_SOURCES": sources}
    assert json.loads(Path("map/prediction.json").read_text())["stack"]["TALUD_SOURCES"] == sources
    assert "chosen" not in record["model"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_map_excludes_transparent_border_of_five_band_image(
    talud: Run, command: list[object], tmp_path: Path, tiny_model: Path, dtype: str
) -> None:
    values = np.random.default_rng(0).integers(1, 250, (5, 60, 90)).astype(dtype)
    values[4] = 255
    values[:, :, :18] = 0  # a fifth of the columns
    names = ("red", "green", "blue", "nir", "")
    source = write_raster(tmp_path / "ortho.tif", values, descriptions=names)
    with rasterio.open(source, "r+") as dataset:
        dataset.colorinterp = (*dataset.colorinterp[:4], ColorInterp.alpha)
    command[command.index("--optical") + 1] = source
    code, out, err = talud(*command)
    assert (code, err) == (0, "")
    assert "not mapped: 20.0% of the raster" in out
    assert "bands of optical: red 1, green 2, blue 3 (by description)" in out
    transparent = np.zeros((60, 90), bool)
    transparent[:, :18] = True
    assert np.array_equal(np.isnan(read(Path("maps/here/probability.tif"))[0]), transparent)
    talud("predict", tiny_model, source, "--out", "direct", "--threshold", 0.45)
    assert np.array_equal(read(Path("direct/probability.tif")), read(Path("maps/here/probability.tif")), equal_nan=True)


def test_map_rebuilds_the_stack_only_if_its_inputs_change(tmp_path: Path, image: Path, tiny_model: Path) -> None:
    contract, out = load_model(tiny_model).contract, tmp_path / "here"

    def build_time(source: Path, **settings: str) -> int:
        area = Area.create(role="transfer", folder=".", **settings)
        return prepare_stack(contract, area, {"optical": source}, out).stat().st_mtime_ns

    first, moved = build_time(image), Path(shutil.copy(image, tmp_path / "moved.tif"))
    os.utime(image)
    assert build_time(image) == build_time(moved) == first  # sources are identified by their contents
    second = build_time(moved, event="2015-05-18")
    assert second != first
    with rasterio.open(out / "stack.tif") as dataset:
        assert dataset.tags()["TALUD_EVENT"] == "2015-05-18"
    write_raster(moved, np.full((3, 60, 90), 100, np.uint8))
    assert build_time(moved, event="2015-05-18") != second
    assert np.unique(read(out / "stack.tif")).tolist() == [100]
    build_time(image)
    content = (out / "stack.tif").read_bytes()
    (out / "stack.tif").write_bytes(content[: len(content) * 3 // 4])  # with a complete header
    build_time(image)
    assert (out / "stack.tif").read_bytes() == content


@pytest.mark.slow
def test_map_keeps_finished_tiles_and_their_stack(
    talud: Run, command: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = [*command[:-5], *command[-4:]]  # without --out's value
    undisturbed.insert(undisturbed.index("--out") + 1, "undisturbed/here")
    assert talud(*undisturbed)[0] == 0
    interrupt(monkeypatch, talud, command, after=3)
    assert {path.name for path in Path("maps/here").iterdir()} == {"stack.tif"}
    code, out, err = talud(*command, "--event", "2015-05-18")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "maps/here/stack.tif: was made with event None (now 2015-05-18), and 3 finished tiles of its map" in err
    code, out, err = talud(*command)
    assert (code, err) == (0, "")
    assert "resumed with 3 of 6 tiles" in out
    assert products(Path("maps/here")) == products(Path("undisturbed/here"))
    assert not list(Path("maps").glob(".*"))


@pytest.mark.slow
def test_map_resumes_after_a_gis_wrote_side_files(
    talud: Run, command: list[object], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, talud, command, after=3)
    band = "<PAMRasterBand band='1'>{}</PAMRasterBand>"
    mean = "<Metadata><MDI key='STATISTICS_MEAN'>99</MDI></Metadata>"
    auxiliary = image.with_name("image.tif.aux.xml")
    auxiliary.write_text(f"<PAMDataset>{band.format('<NoDataValue>99</NoDataValue>')}</PAMDataset>")
    code, _, err = talud(*command)
    assert (code, "was made with different optical" in err) == (1, True)
    auxiliary.write_text(f"<PAMDataset>{band.format(mean)}</PAMDataset>")
    shutil.copy(auxiliary, "maps/here/stack.tif.aux.xml")
    code, out, err = talud(*command)
    assert (code, err) == (0, "")
    assert "resumed with 3 of 6 tiles" in out


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["maps/here/.stack.tif.*/*", "maps/.here.partial/tiles/*.npz"])
def test_map_resumes_after_a_kill(talud: Run, command: list[object], tmp_path: Path, moment: str) -> None:
    """Kill the command while it builds the stack, and while it computes tiles."""
    image = write_raster(tmp_path / "large.tif", np.random.default_rng(0).integers(1, 250, (3, 300, 420), np.uint8))
    command[command.index("--optical") + 1] = image
    command[command.index("--tile") + 1] = 64
    assert talud(*(part if part != "maps/here" else "undisturbed/here" for part in command))[0] == 0
    process = subprocess.Popen([sys.executable, "-m", "talud.cli.main", *map(str, command)], stdout=subprocess.PIPE)
    while process.poll() is None and not list(Path().glob(moment)):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not Path("maps/here/prediction.json").exists()
    code, out, err = talud(*command)
    assert (code, err) == (0, "")
    assert ("resumed with" in out) == ("tiles" in moment)
    assert products(Path("maps/here")) == products(Path("undisturbed/here"))


def test_map_checks_options_before_building_a_stack(talud: Run, command: list[object]) -> None:
    code, out, err = talud(*command[:-1], 5)
    assert (code, out, err) == (1, "", "talud: the threshold is 5; it must be between 0 and 1\n")
    assert not Path("maps").exists()


@pytest.mark.slow
def test_failed_map_keeps_the_earlier_one(talud: Run, command: list[object], tmp_path: Path) -> None:
    assert talud(*command)[0] == 0
    before = products(Path("maps/here"))
    sixteen_bits = np.random.default_rng(0).integers(1000, 9000, (3, 60, 90), np.uint16)
    command[command.index("--optical") + 1] = write_raster(tmp_path / "sixteen.tif", sixteen_bits)
    code, out, err = talud(*command)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("talud: maps/here/stack.tif: band 'red' has ")
    assert "16-bit numbers" in err
    assert products(Path("maps/here")) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--optical": "missing.tif"}, "missing.tif: cannot be read as a raster"),
        ({"--optical": None, "--dtm": "any.tif"}, "the model '3band' needs red, green, blue: give --optical FILE"),
        ({"--model": "missing.onnx"}, "missing.onnx: no such file"),
        ({"--model": "auto"}, "it does not answer; check the server and MLFLOW_TRACKING_URI (or give the model"),
        ({"--out": "file"}, "file: cannot be written: a file of that name is in the way"),
    ],
)
def test_map_reports_user_errors_on_one_line(
    talud: Run, command: list[object], monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # unused port
    Path("file").touch()
    options = dict(zip(command[1::2], command[2::2], strict=True)) | change
    code, out, err = talud("map", *(part for name, value in options.items() if value for part in (name, value)))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err
    assert [path.name for path in Path().rglob("*")] == ["file"]


@pytest.mark.parametrize("wrong", [["map", "--out", "map"], ["map", "--optical", "image.tif"]])
def test_map_exits_with_2_on_wrong_usage(talud: Run, command: list[object], wrong: list[str]) -> None:
    assert talud(*wrong)[0] == 2
    assert not list(Path().iterdir())


def test_map_does_not_overwrite_a_source_with_the_stack(talud: Run, command: list[object], image: Path) -> None:
    Path("maps/here").mkdir(parents=True)
    source = shutil.copy(image, Path("maps/here/stack.tif"))
    command[command.index(image)] = source
    code, _, err = talud(*command)
    assert (code, err.count("\n")) == (1, 1)
    assert "is one of the inputs" in err
    assert source.read_bytes() == image.read_bytes()
