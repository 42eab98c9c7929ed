"""Tests of the files of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from talud.engine.runtime import Model
from talud.errors import OutputError
from talud.evaluation.comparison import compare
from talud.project import Project


@pytest.mark.slow
def test_compare_replaces_only_files_of_a_comparison(small_project: Project, tmp_path: Path) -> None:
    model, out = Model.load(small_project.model("3band")), tmp_path / "compared"
    out.mkdir()
    (out / "difference.tif").write_text("user's file")
    with pytest.raises(OutputError, match=r"contains difference\.tif"):
        compare(model, model, small_project, "away", out)
    assert (out / "difference.tif").read_text() == "user's file"
    (out / "difference.tif").unlink()
    compare(model, model, small_project, "away", out)
    compare(model, model, small_project, "away", out)
    assert (out / "comparison.json").is_file()
