"""`talud inventory import`: what a geologist reads, and the exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely

from source_files import CORNER, UTM, write_project, write_raster
from talud.cli.main import main

LEFT, TOP = CORNER
SQUARES = [shapely.box(LEFT + x, TOP - x - 100, LEFT + x + 100, TOP - x) for x in (100, 300, 500)]

Run = Callable[..., tuple[int, str, str]]


def write(path: Path, geometries: list[shapely.Geometry]) -> Path:
    pyogrio.write_dataframe(geopandas.GeoDataFrame(geometry=geometries, crs=UTM), path)
    return path


@pytest.fixture
def talud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `talud inventory` in a project with one area; gives exit code, stdout and stderr."""
    folder = tmp_path / "project/data/here"
    write_raster(folder / "optical.tif", np.full((3, 64, 64), 90, np.uint8))
    write(folder / "inventory.gpkg", SQUARES)
    write_project(tmp_path / "project", {"here": {"role": "training", "folder": "data/here"}})
    monkeypatch.chdir(tmp_path / "project")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["talud", "inventory", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        said = capsys.readouterr()
        return int(exit_.value.code or 0), said.out, said.err

    return run


def test_it_says_what_changed_and_what_to_run_next(talud: Run, tmp_path: Path) -> None:
    edits = write(tmp_path / "edits.gpkg", [SQUARES[0], SQUARES[1].buffer(10, join_style="mitre")])
    code, out, err = talud("import", edits, "--area", "here")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "here: 3 polygons, 3.00 ha before, 2 polygons, 2.44 ha now",
        "  added: 0 polygons, 0.00 ha",
        "  removed: 1 polygon, 1.00 ha",
        "  changed: 1 polygon, +0.44 ha",
        "  unchanged: 1 polygon, 1.00 ha",
        "written: data/here/inventory.gpkg",
        "next, so that the new data are on record before a model is trained on them:",
        "  dvc add data/here",
        "  git commit --message 'The inventory of here is corrected' data/here.dvc",
        "  dvc repro",
    ]
    (tmp_path / "project/data.dvc").touch()
    assert "dvc add data\n" in talud("import", write(tmp_path / "less.gpkg", SQUARES[:1]), "--area", "here")[1]
    code, out, _ = talud("import", tmp_path / "less.gpkg", "--area", "here")
    assert (code, out.splitlines()[-1]) == (0, "nothing changed; data/here/inventory.gpkg is as it was")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere.gpkg", "--area", "here"], 1, "nowhere.gpkg: no such file"),
        (["params.yaml", "--area", "here"], 1, "params.yaml: cannot be read as polygons"),
        (["data/here/inventory.gpkg", "--area", "there"], 1, "no area 'there' in params.yaml; it has: here"),
        (["data/here/inventory.gpkg"], 2, "--area"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(talud: Run, arguments: list[str], code: int, said: str) -> None:
    found, out, err = talud("import", *arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert code == 2 or len(err.strip().splitlines()) == 1
