"""Tests of the output and exit codes of `talud inventory import`."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely

from command_line import Run, runner
from source_files import CORNER, UTM, write_project, write_raster
from talud.errors import OutputError
from talud.files import atomic_replace
from talud.lineage.provenance import MapProvenance

LEFT, TOP = CORNER
SQUARES = [shapely.box(LEFT + x, TOP - x - 100, LEFT + x + 100, TOP - x) for x in (100, 300, 500)]


def write(path: Path, geometries: list[shapely.Geometry]) -> Path:
    pyogrio.write_dataframe(geopandas.GeoDataFrame(geometry=geometries, crs=UTM), path)
    return path


@pytest.fixture
def talud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `talud inventory` in a project with one area."""
    folder = tmp_path / "project/data/here"
    write_raster(folder / "optical.tif", np.full((3, 64, 64), 90, np.uint8))
    write(folder / "inventory.gpkg", SQUARES)
    write_project(tmp_path / "project", {"here": {"role": "training", "folder": "data/here"}})
    monkeypatch.chdir(tmp_path / "project")

    return runner(monkeypatch, capsys, "inventory")


def test_import_prints_changes_and_next_commands(talud: Run, tmp_path: Path) -> None:
    edits = write(tmp_path / "edits.gpkg", [SQUARES[0], SQUARES[1].buffer(10, join_style="mitre")])
    code, out, err = talud("import", edits, "--area", "here")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "here: 3 polygons, 3.00 ha before, 2 polygons, 2.44 ha after",
        "  added: 0 polygons, 0.00 ha",
        "  removed: 1 polygon, 1.00 ha",
        "  changed: 1 polygon, +0.44 ha",
        "  unchanged: 1 polygon, 1.00 ha",
        "written: data/here/inventory.gpkg",
        "next steps, to version the new inventory before a model is trained with it:",
        "  dvc add data/here",
        "  git commit --message 'Correct the inventory of here' data/here.dvc",
        "  dvc repro",
    ]
    (tmp_path / "project/data.dvc").touch()
    assert "dvc add data\n" in talud("import", write(tmp_path / "less.gpkg", SQUARES[:1]), "--area", "here")[1]
    code, out, _ = talud("import", tmp_path / "less.gpkg", "--area", "here")
    assert (code, out.splitlines()[-1]) == (0, "no changes; data/here/inventory.gpkg was not written")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.gpkg", "--area", "here"], 1, "nowhere.gpkg: no such file"),
        (["params.yaml", "--area", "here"], 1, "params.yaml: cannot be read as polygons"),
        (["data/here/inventory.gpkg", "--area", "there"], 1, "no area 'there' in params.yaml; it has: here"),
        (["data/here/inventory.gpkg"], 2, "--area"),
    ],
)
def test_import_reports_errors_on_one_line(talud: Run, arguments: list[str], code: int, message: str) -> None:
    found, out, err = talud("import", *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert code == 2 or len(err.strip().splitlines()) == 1


EDITOR = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA journal_mode=WAL")
for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
    connection.execute(f'DROP TRIGGER "{name}"')
table = connection.execute("SELECT table_name FROM gpkg_contents").fetchone()[0]
connection.execute(f'DELETE FROM "{table}" WHERE fid = 1')
connection.commit()
print("edited", flush=True)
sys.stdin.read()
"""


@contextmanager
def open_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another program that keeps a GeoPackage open.

    It has deleted the first feature in write-ahead mode, as QGIS does, and stays connected.
    """
    command = [sys.executable, "-c", EDITOR, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as editor:
        assert editor.stdout is not None
        assert editor.stdout.readline() == "edited\n"
        assert path.with_name(f"{path.name}-wal").stat().st_size
        yield editor
        editor.kill()


def count_features(path: Path) -> int:
    """Return the number of features of a GeoPackage by SQLite alone.

    Assert that there are no files beside it.
    """
    beside = [other.name for other in path.parent.iterdir() if other.name.startswith(f"{path.name}-")]
    assert beside == []
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (table,) = connection.execute("SELECT table_name FROM gpkg_contents").fetchone()
        return int(connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0])


def test_import_reads_uncommitted_edits_of_another_program(talud: Run, tmp_path: Path) -> None:
    edits = write(tmp_path / "edits.gpkg", SQUARES)
    with open_elsewhere(edits):
        before = {path.name: path.read_bytes() for path in tmp_path.glob("edits.*")}
        code, out, err = talud("import", edits, "--area", "here")
        assert {path.name: path.read_bytes() for path in tmp_path.glob("edits.*")} == before
    assert (code, err) == (0, "")
    assert "  removed: 1 polygon, 1.00 ha" in out
    assert count_features(tmp_path / "project/data/here/inventory.gpkg") == 2


def test_import_does_not_replace_an_inventory_open_elsewhere(talud: Run, tmp_path: Path) -> None:
    inventory = tmp_path / "project/data/here/inventory.gpkg"
    edits = write(tmp_path / "edits.gpkg", SQUARES[:1])
    with open_elsewhere(inventory):
        before = inventory.read_bytes()
        code, out, err = talud("import", edits, "--area", "here")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "data/here/inventory.gpkg: is open in another program, QGIS for example" in err
        assert inventory.read_bytes() == before
    with closing(sqlite3.connect(inventory)) as connection:  # uncommitted edits are not lost
        assert connection.execute("SELECT count(*) FROM inventory").fetchone() == (2,)
    assert talud("import", edits, "--area", "here")[0] == 0
    assert count_features(inventory) == 1


def test_import_includes_edits_left_in_the_wal_by_a_crash(talud: Run, tmp_path: Path) -> None:
    inventory = tmp_path / "project/data/here/inventory.gpkg"
    with open_elsewhere(inventory) as editor:
        editor.kill()
        editor.wait()
    assert inventory.with_name("inventory.gpkg-wal").stat().st_size
    code, out, err = talud("import", write(tmp_path / "edits.gpkg", SQUARES[1:2]), "--area", "here")
    assert (code, err) == (0, "")
    assert "here: 2 polygons, 2.00 ha before, 1 polygon, 1.00 ha after" in out
    assert count_features(inventory) == 1


def test_import_ignores_the_wal_of_a_deleted_geopackage(tmp_path: Path) -> None:
    path = write(tmp_path / "new.gpkg", SQUARES)
    with open_elsewhere(path):
        shutil.copy(tmp_path / "new.gpkg-wal", tmp_path / "kept")
    path.unlink()
    (tmp_path / "kept").rename(tmp_path / "new.gpkg-wal")
    with pytest.raises(OutputError, match=r"new\.gpkg-wal holds pending edits"), atomic_replace(path) as scratch:
        write(scratch, SQUARES)
    assert not path.exists()


def test_reading_a_geopackage_writes_no_side_files(talud: Run, tmp_path: Path) -> None:
    path = tmp_path / "project/data/here/inventory.gpkg"
    frame = geopandas.GeoDataFrame(geometry=SQUARES, crs=UTM)
    pyogrio.write_dataframe(frame, path, dataset_metadata={"TALUD_WEIGHTS": "0"})
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    moments = {each.name: each.stat().st_mtime_ns for each in (path.parent, path)}
    talud("import", path, "--area", "here")
    assert MapProvenance.read(path).weights == "0"
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before
    assert {each.name: each.stat().st_mtime_ns for each in (path.parent, path)} == moments
