"""Tests of user errors in sources and params.yaml.

Each gives one line on stderr and exit code 1, and keeps earlier results."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely

from command_line import Run
from source_files import CORNER, UTM, write_project, write_raster
from talud.project import Project

SIDE = 64
LEFT, TOP = CORNER
AREA = {"role": "training", "folder": "data/here"}
SQUARE = shapely.box(LEFT + 200, TOP - 300, LEFT + 300, TOP - 200)

Spoil = Callable[[Path], object]


def noise(bands: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(30, 220, (bands, SIDE, SIDE)).astype(np.uint8)


def write_inventory(folder: Path, geometries: list[shapely.Geometry | None]) -> None:
    frame = geopandas.GeoDataFrame(geometry=geometries, crs=UTM)
    frame.to_file(folder / "inventory.gpkg", layer="inventory")


def rough_terrain() -> np.ndarray:
    rows, columns = np.indices((SIDE, SIDE))
    return (1000 + 50 * np.sin(rows / 5) + 40 * np.cos(columns / 7)).astype(np.float32)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project with one training area, as working folder."""
    folder = tmp_path / "project/data/here"
    write_raster(folder / "optical.tif", noise())
    write_raster(folder / "dtm.tif", rough_terrain())
    write_inventory(folder, [SQUARE])
    monkeypatch.chdir(tmp_path / "project")
    return write_project(tmp_path / "project", {"here": AREA})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cut(name: str) -> Spoil:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def inventory(*geometries: shapely.Geometry | None) -> Spoil:
    return lambda folder: write_inventory(folder, list(geometries))


def params(old: str, new: str) -> Spoil:
    def damage(folder: Path) -> None:
        path = folder.parent.parent / "params.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return damage


FAR = (700_000.0, 900_000.0)
DAMAGED: dict[str, tuple[Spoil, str]] = {
    "no reference system": (lambda at: write_raster(at / "optical.tif", noise(), crs=None), r"optical\.tif: no coord"),
    "disjoint": (
        lambda at: write_raster(at / "dtm.tif", rough_terrain(), corner=FAR),
        r"dtm\.tif: does not overlap area 'here'",
    ),
    "nodata alone": (
        lambda at: write_raster(at / "dtm.tif", rough_terrain() * np.nan),
        r"dtm\.tif: has no valid pixel",
    ),
    "cut short": (cut("optical.tif"), r"optical\.tif: cannot be read as a raster"),
    "no raster": (lambda at: (at / "dtm.tif").write_text("hello"), r"dtm\.tif: cannot be read as a raster"),
    "a mask": (lambda at: write_raster(at / "optical.tif", (noise() > 99) * np.uint8(255)), r"0 and 255, like a mask"),
    "one band": (lambda at: write_raster(at / "optical.tif", noise(1)), r"has 1 band,.* expects green in band 2"),
    "empty inventory": (inventory(), r"inventory\.gpkg: has no polygons, and area 'here' needs landslides"),
    "empty polygons": (inventory(shapely.Polygon(), None), r"has no polygons \(2 features without one\)"),
    "points": (inventory(shapely.Point(CORNER)), r"inventory\.gpkg: has no layer of polygons"),
    "inventory elsewhere": (inventory(shapely.box(0, 0, 9, 9)), r"none of its 1 polygons is in area 'here'"),
    "damaged inventory": (cut("inventory.gpkg"), r"inventory\.gpkg: "),
    "mistyped key": (
        params("resolution:", "resolutoin:"),
        r"'stack\.resolutoin'; did you mean 'resolution'\? \(allowed",
    ),
    "mistyped required key": (params("folder:", "foldr:"), r"'areas\.here\.foldr'; did you mean 'folder'\? \(allowed"),
    "impossible day": (params("role:", "event: 2015-02-30\n    role:"), r"params\.yaml: not valid YAML: day is out of"),
    "unknown band": (params("- red", "- rde"), r"band set 'rgb' needs rde, .*no band rde"),
    "clause of no column": (params("role:", "inventory_filter: kind = 1\n    role:"), r"no such column: kind"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_stack_reports_a_damaged_source_and_keeps_the_old_stack(talud: Run, project: Project, case: str) -> None:
    assert talud("stack", "here")[0] == 0
    before = files(project.root / "stacks")
    damage, message = DAMAGED[case]
    damage(project.root / "data/here")
    code, out, err = talud("stack", "here")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("talud: ")
    assert re.search(message, err)
    assert files(project.root / "stacks") == before


def test_stack_warns_once_of_a_doubtful_source(talud: Run, project: Project) -> None:
    heights = rough_terrain()
    heights[:, :8] = 0
    write_raster(project.root / "data/here/dtm.tif", heights)
    code, out, err = talud("stack", "here")
    assert (code, err.count("\n")) == (0, 1)
    assert out.startswith("here: stacks/here.tif, ")
    assert re.fullmatch(r"talud: warning: .*dtm\.tif: 12\.5% of its pixels are 0, .* -a_nodata 0 .*dtm\.tif\n", err)


def test_stack_reports_repaired_and_skipped_polygons(talud: Run, project: Project) -> None:
    bow = shapely.Polygon([(LEFT, TOP), (LEFT + 99, TOP - 99), (LEFT + 99, TOP), (LEFT, TOP - 99)])
    write_inventory(project.root / "data/here", [bow, SQUARE, shapely.Polygon(), None])
    code, out, err = talud("stack", "here")
    assert (code, err) == (0, "")
    assert "2 polygons" in out
    assert "1 invalid polygon repaired; 2 features without a polygon skipped" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["stack"],
        ["stack", "here", "--out", "other.tif"],
        ["stack", "here", "--optical", "other.tif"],
        ["stack", "here", "--like", "model.onnx", "--out", "other.tif"],
        ["stack", "--like", "model.onnx"],
        ["train"],
        ["train", "rgb", "--depth", "4"],
        ["nonsense"],
    ],
)
def test_commands_exit_with_2_on_wrong_usage(talud: Run, project: Project, arguments: list[str]) -> None:
    code, out, err = talud(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: talud" in err
    assert not (project.root / "stacks").exists()


def test_stack_does_not_overwrite_its_source(talud: Run, project: Project, tiny_model: Path) -> None:
    source = project.root / "data/here/optical.tif"
    before = source.read_bytes()
    code, _, err = talud("stack", "--like", tiny_model, "--optical", source, "--out", "data/here/../here/optical.tif")
    assert (code, err.count("\n")) == (1, 1)
    assert "is one of the inputs" in err
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    "command", [["train", "rgb"], ["evaluate", "rgb"], ["register"], ["report"], ["stack", "here"]]
)
def test_commands_fail_outside_a_project_and_write_nothing(
    talud: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    root = Path(tmp_path.anchor)  # cannot be inside a project
    before = set(root.iterdir())
    monkeypatch.chdir(root)
    code, out, err = talud(*command)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no params.yaml here or above; change into a talud project" in err
    assert set(root.iterdir()) == before


@pytest.mark.slow
def test_predict_names_the_file_on_a_full_disk(tmp_path: Path, tiny_model: Path) -> None:
    """Limit files of a subprocess to 20 kB, so that writes fail as on a full disk."""
    source = write_raster(tmp_path / "optical.tif", noise())
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from talud.cli.main import main; main()"
    )
    arguments = ["stack", "--like", tiny_model, "--optical", source, "--out", tmp_path / "out.tif"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert result.stderr.startswith(f"talud: {tmp_path / 'out.tif'}: cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["optical.tif"]


def statuses(store: Path) -> list[str]:
    """Return the statuses of the runs in a store that another process may be creating."""
    try:
        with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as connection:
            return [status for (status,) in connection.execute("SELECT status FROM runs")]
    except sqlite3.Error:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 2])
def test_ctrl_c_during_training_closes_all_runs(talud: Run, project: Project, delay: float) -> None:
    squares = [
        shapely.box(x, y, x + 60, y + 60)
        for x in LEFT + np.arange(50, 750, 100)
        for y in TOP - np.arange(100, 800, 100)
    ]
    write_inventory(project.root / "data/here", squares)
    params("split: {}", "split: {block: 16, patch: 16, stride: 16}")(project.root / "data/here")
    params("epochs: 1", "epochs: 9999")(project.root / "data/here")
    assert talud("stack", "here")[0] == 0
    before = files(project.root)
    command = [sys.executable, "-m", "talud.cli.main", "train", "rgb"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    store = project.root / "mlflow.db"
    while len(statuses(store)) < 2 and process.poll() is None:  # runs of the study and of its trial
        time.sleep(0.1)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert statuses(store) == ["KILLED", "KILLED"]
    store.unlink()
    shutil.rmtree(project.root / "checkpoints")  # from which the command would resume
    assert files(project.root) == before
