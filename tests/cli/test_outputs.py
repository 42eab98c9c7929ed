"""Tests that no command overwrites its inputs or a user's own files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

from command_line import Run
from source_files import CORNER, UTM, write_project, write_raster
from stack_files import noise, write_stack
from talud import source_files
from talud.errors import OutputError
from talud.files import atomic_replace

LEFT, TOP = CORNER


@pytest.fixture
def work_folder(tmp_path: Path, tiny_model: Path) -> Path:
    """Return a working folder with inputs of commands and other files.

    It contains a model, an image with a world file and a mosaic of it, clouds and a stack.

    Symbolic and hard links lead to model and image, and a folder is called like a file.
    """
    shutil.copy(tiny_model, tmp_path / "model.onnx")
    write_raster(tmp_path / "image.tif", np.random.default_rng(0).integers(30, 220, (3, 64, 64)).astype(np.uint8))
    (tmp_path / "image.tfw").write_text(f"12.5\n0\n0\n-12.5\n{LEFT + 6.25}\n{TOP - 6.25}\n")
    with rasterio.open(tmp_path / "image.tif") as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "mosaic.vrt", driver="VRT")
    square = shapely.box(LEFT + 200, TOP - 300, LEFT + 300, TOP - 200)
    clouds = geopandas.GeoDataFrame(geometry=[square], crs=UTM)
    clouds.to_file(tmp_path / "clouds.shp")
    clouds.to_file(tmp_path / "clouds.gpkg")
    write_stack(tmp_path / "stack.tif", noise(64, 64))
    for name in ("model.onnx", "image.tif", "stack.tif"):
        (tmp_path / f"link.{name}").symlink_to(tmp_path / name)
        os.link(tmp_path / name, tmp_path / f"hard.{name}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("of somebody")
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


STACK = ["stack", "--like", "model.onnx", "--optical", "image.tif", "--cloud", "clouds.shp", "--out"]
MOSAIC = ["stack", "--like", "model.onnx", "--optical", "mosaic.vrt", "--cloud", "clouds.gpkg", "--out"]
ADAPT = ["adapt", "model.onnx", "stack.tif", "--out"]
INPUT = "is one of the inputs"
REFUSED = [
    *((STACK, name, INPUT) for name in ("model.onnx", "link.model.onnx", "hard.model.onnx", "folder/../model.onnx")),
    *((STACK, name, INPUT) for name in ("image.tif", "link.image.tif", "hard.image.tif", "clouds.shp")),
    *((STACK, name, INPUT) for name in ("image.tfw", "clouds.prj")),
    *((MOSAIC, name, INPUT) for name in ("mosaic.vrt", "image.tif", "clouds.gpkg")),
    (STACK, "folder", "folder: cannot be written: it is a folder; give the path of a file"),
    (STACK, "file/stack.tif", "file is a file, not a folder"),
    *((ADAPT, name, INPUT) for name in ("model.onnx", "link.model.onnx", "hard.model.onnx")),
    (ADAPT, "file/new.onnx", "file is a file, not a folder"),
]


@pytest.mark.parametrize(("command", "out", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_output_that_is_an_input_is_rejected(
    talud: Run, work_folder: Path, command: list[str], out: str, message: str
) -> None:
    before = content(work_folder)
    code, output, err = talud(*command, out)
    assert (code, output, err.count("\n")) == (1, "", 1)
    assert message in err
    assert content(work_folder) == before


@pytest.mark.parametrize("out", ["stack.tif", "file", "model"])
def test_model_output_must_be_an_onnx_file(talud: Run, work_folder: Path, out: str) -> None:
    before = content(work_folder)
    code, _, err = talud(*ADAPT, out)
    assert code == 2
    assert "must end in .onnx" in err
    assert content(work_folder) == before


MAP = ["map", "--model", "model.onnx", "--optical", "image.tif", "--provider", "cpu", "--out"]
PREDICT = ["predict", "model.onnx", "stack.tif", "--provider", "cpu", "--out"]


@pytest.mark.parametrize("command", [MAP, PREDICT])
@pytest.mark.parametrize(
    "names", [["landslides.gpkg"], ["summary.html", "quicklook.png"], ["prediction.json"], ["landslides.qml"]]
)
def test_map_rejects_a_folder_with_other_files(
    talud: Run, work_folder: Path, command: list[str], names: list[str]
) -> None:
    (work_folder / "basin").mkdir()
    for name in names:
        (work_folder / "basin" / name).write_text("{}")
    before = content(work_folder)
    code, output, err = talud(*command, "basin")
    assert (code, output, err.count("\n")) == (1, "", 1)
    assert all(name in err for name in names)
    assert content(work_folder) == before


def test_map_keeps_a_stack_that_it_did_not_write(talud: Run, work_folder: Path) -> None:
    (work_folder / "basin").mkdir()
    shutil.copy(work_folder / "stack.tif", work_folder / "basin/stack.tif")
    before = content(work_folder)
    code, _, err = talud(*MAP, "basin")
    assert (code, "stack.tif" in err) == (1, True)
    assert content(work_folder) == before


@pytest.mark.parametrize("command", [MAP, PREDICT])
@pytest.mark.parametrize("name", ["image.tif", "link.tif"])
def test_map_rejects_an_output_folder_with_its_inputs(
    talud: Run, work_folder: Path, command: list[str], name: str
) -> None:
    (work_folder / "basin").mkdir()
    raster = command[command.index("--optical") + 1 if "--optical" in command else 2]
    (work_folder / raster).rename(work_folder / "basin/image.tif")
    (work_folder / "basin/link.tif").symlink_to("image.tif")
    before = content(work_folder)
    code, _, err = talud(*(f"basin/{name}" if part == raster else part for part in command), "basin")
    assert (code, "which is one of the inputs" in err) == (1, True)
    assert content(work_folder) == before


@pytest.mark.slow
def test_map_replaces_an_earlier_map_and_keeps_other_files(talud: Run, work_folder: Path) -> None:
    assert talud(*MAP, "basin")[0] == 0
    (work_folder / "basin/notes.txt").write_text("mine")
    first = content(work_folder / "basin")
    assert talud(*MAP, "basin", "--threshold", 0.4)[0] == 0
    again = content(work_folder / "basin")
    assert again.keys() == first.keys()
    assert again["notes.txt"] == b"mine"
    assert again["landslides.tif"] != first["landslides.tif"]
    # Its stack may be mapped by another model, and files of an interrupted run belong to talud.
    assert talud("predict", "model.onnx", "basin/stack.tif", "--provider", "cpu", "--out", "basin")[0] == 0


def test_stack_of_an_area_does_not_overwrite_its_source(
    talud: Run, work_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work_folder / "project/stacks").mkdir(parents=True)
    shutil.copy(work_folder / "image.tif", work_folder / "project/stacks/here.tif")
    area = {"role": "transfer", "folder": "stacks", "files": {"optical": "here.tif"}}
    write_project(work_folder / "project", {"here": area})
    monkeypatch.chdir(work_folder / "project")
    before = content(work_folder)
    code, _, err = talud("stack", "here")
    assert (code, "stacks/here.tif: is one of the inputs" in err) == (1, True)
    assert content(work_folder) == before


@pytest.mark.parametrize(
    "command",
    [
        [*STACK, ""],
        ["map", "--optical", "image.tif", "--out", ""],
        ["map", "--optical", "image.tif", "--out="],
        ["predict", "model.onnx", "stack.tif", "--out", " "],
        [*ADAPT, ""],
        ["finetune", "model.onnx", "here", "--patches", "1", "--out", ""],
        ["models", "compare", "a", "b", "--area", "here", "--out", ""],
        ["inventory", "import", "", "--area", "here"],
        ["stack", "--like", "model.onnx", "--optical", "", "--out", "new.tif"],
        ["quantize", ""],
        ["adapt", "", "stack.tif", "--out", "new.onnx"],
    ],
)
def test_empty_output_is_a_usage_error(talud: Run, work_folder: Path, command: list[str]) -> None:
    before = content(work_folder)
    code, output, err = talud(*command)
    assert (code, output) == (2, "")
    assert "is empty" in err
    assert content(work_folder) == before


def test_output_never_replaces_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="neither a file nor a folder"):
        source_files.check_output_file(tmp_path / "pipe", [])
    with pytest.raises(OutputError, match="neither a file nor a folder"), atomic_replace(tmp_path / "pipe") as scratch:
        scratch.write_bytes(b"x")
    assert (tmp_path / "pipe").is_fifo()
