"""Tests of commands that were renamed: the old name warns and still works."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import Run
from small_projects import write_params
from talud.cli import evaluation
from talud.evaluation.baselines import RecipeComparison, read_comparison
from talud.project import Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project in which the comparison of recipes is written without training."""

    def write_comparison(project: Project, band_set: str, as_json: bool) -> None:
        RecipeComparison(band_set=band_set, scored=()).write(project.recipe_comparison(band_set))

    monkeypatch.setattr(evaluation, "_score_recipes", write_comparison)
    monkeypatch.setattr(evaluation, "_score_forest", lambda *_: print("forest"))
    found = write_params(tmp_path / "project")
    monkeypatch.chdir(found.root)
    return found


def test_baseline_writes_the_comparison_to_baselines(talud: Run, project: Project) -> None:
    assert talud("baseline", "3band") == (0, "", "")
    assert (project.root / "baselines" / "3band.json").is_file()
    assert not (project.root / "references").exists()


def test_reference_warns_and_writes_where_old_stages_look(talud: Run, project: Project) -> None:
    code, _, err = talud("reference", "3band")
    assert code == 0
    assert err.count("\n") == 1
    assert err.startswith("talud: warning: talud reference is deprecated")
    assert (project.root / "references" / "3band.json").is_file()
    assert read_comparison(project, "3band") == RecipeComparison(band_set="3band", scored=())


def test_report_prefers_the_comparison_in_baselines(talud: Run, project: Project) -> None:
    talud("reference", "3band")
    talud("baseline", "3band")
    (project.root / "references" / "3band.json").write_text("damaged")
    assert read_comparison(project, "3band") == RecipeComparison(band_set="3band", scored=())
    assert read_comparison(project, "7band") is None


def test_floor_warns_and_scores_a_random_forest(talud: Run, project: Project) -> None:
    code, out, err = talud("floor", "3band")
    assert (code, out) == (0, "forest\n")
    assert err.count("\n") == 1
    assert "use talud baseline BAND_SET --method random-forest" in err


def test_help_hides_deprecated_commands(talud: Run) -> None:
    _, out, _ = talud("--help")
    assert "baseline" in out
    assert "floor" not in out
    assert "reference" not in out
