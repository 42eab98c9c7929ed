"""Tests of stacks that no longer match params.yaml."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely

from source_files import CORNER, UTM, write_project, write_raster
from talud.cli.main import main
from talud.data.stack import build_stack
from talud.data.stack_record import check_current_stack, check_raster_current
from talud.errors import StudyError
from talud.project import Project

SIDE = 64
LEFT, TOP = CORNER
BOUNDS = [LEFT, TOP - 12.5 * 48, LEFT + 12.5 * 48, TOP]
AREA: dict[str, object] = {"role": "training", "folder": "data/here"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project with one area that has its stack."""
    folder = tmp_path / "project/data/here"
    write_raster(folder / "optical.tif", np.random.default_rng(0).integers(30, 220, (3, SIDE, SIDE)).astype(np.uint8))
    square = shapely.box(LEFT + 200, TOP - 300, LEFT + 300, TOP - 200)
    geopandas.GeoDataFrame(geometry=[square], crs=UTM).to_file(folder / "inventory.gpkg", layer="inventory")
    found = write_project(tmp_path / "project", {"here": AREA})
    monkeypatch.chdir(found.root)
    build_stack(found, "here")
    return found


CHANGES = [
    ({}, {"stack": {"resolution": 25}}, "resolution 12.5, but params.yaml states 25.0"),
    ({"resolution": 6.25}, {}, "resolution 12.5, but params.yaml states 6.25"),
    ({}, {"stack": {"resolution": 12.5, "slope": "horn"}}, "slope zevenbergen_thorne, but params.yaml states horn"),
    ({}, {"stack": {"resolution": 12.5, "inventory_rule": "all_touched"}}, "inventory_rule centre, .* all_touched"),
    ({"bounds": BOUNDS}, {}, r"bounds null, but params.yaml states \[400000"),
    ({"optical_bands": {"red": 3, "green": 2, "blue": 1}}, {}, 'optical_bands .*"red": 1.*"red": 3'),
    ({"files": {"optical": "other.tif"}}, {}, "files {}, but params.yaml states .*other.tif"),
    ({"folder": "data/there"}, {}, "folder data/here, but params.yaml states data/there"),
    ({"role": "gate"}, {}, "for the role training, but params.yaml states gate"),
]


@pytest.mark.parametrize(("area", "changes", "words"), CHANGES)
def test_stack_of_other_settings_is_refused(
    project: Project, area: dict[str, object], changes: dict[str, object], words: str
) -> None:
    assert check_current_stack(project, "here") == project.stack("here")
    changed = write_project(project.root, {"here": AREA | area}, **changes)
    with pytest.raises(StudyError, match=rf"^stacks/here.tif: was made .*{words}.*; run talud stack here \(or"):
        check_current_stack(changed, "here")
    with pytest.raises(StudyError, match="run talud stack here"):
        check_raster_current("stacks/here.tif")


def test_unrelated_settings_may_change(project: Project) -> None:
    changed = write_project(project.root, {"here": AREA}, seed=2, split={"block": 32, "patch": 32})
    assert check_current_stack(changed, "here") == project.stack("here")
    for options in ({"overlap": "allow"}, {"pixel_sizes": "native"}):
        other = write_project(project.root, {"here": AREA}, stack={"resolution": 12.5, **options})
        assert check_current_stack(other, "here") == project.stack("here")


def test_older_record_is_checked_by_the_tags_of_its_stack(project: Project) -> None:
    record = json.loads(project.stack_record("here").read_text())
    del record["settings"]
    project.stack_record("here").write_text(json.dumps(record))
    assert check_current_stack(project, "here") == project.stack("here")
    with pytest.raises(StudyError, match=r"resolution 12[.]5, but params[.]yaml states 25"):
        check_current_stack(write_project(project.root, {"here": AREA}, stack={"resolution": 25}), "here")
    project.stack_record("here").unlink()  # another program's stack
    assert check_current_stack(project, "here") == project.stack("here")


@pytest.mark.parametrize(
    "command",
    [
        ("baseline", "rgb", "--method", "random-forest"),
        ("train", "rgb"),
        ("evaluate", "MODEL", "here"),
        ("predict", "MODEL", "stacks/here.tif", "--out", "map"),
        ("adapt", "MODEL", "stacks/here.tif", "--out", "adapted.onnx"),
        ("models", "compare", "MODEL", "MODEL", "--area", "here"),
    ],
)
def test_commands_refuse_a_stale_stack_in_one_line(
    project: Project,
    tiny_model: Path,
    command: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_project(project.root, {"here": AREA}, stack={"resolution": 25})
    arguments = [str(tiny_model) if part == "MODEL" else part for part in command]
    monkeypatch.setattr(sys, "argv", ["talud", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert re.fullmatch(r"talud: stacks/here.tif: was made with resolution 12.5, .*run talud stack here .*\n", said)
