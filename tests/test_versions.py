"""Tests of the versions of the package's parts, and of their effect on DVC."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import code_hashes
from fresh_clone import ROOT, clone, run_shell
from talud import versions
from talud.errors import ParamsError, TaludWarning

VENV = Path(sys.prefix)
LEFT_OUT = {
    "__init__", "basin", "cli", "cluster", "cluster_connection", "errors", "files", "lineage",
    "process", "progress", "project", "registry", "serving", "text", "versions",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(
    sys.version_info[:2] != code_hashes.PYTHON, reason="syntax trees of other versions of Python differ"
)
def test_changed_code_raises_a_version_or_is_recorded() -> None:
    report = code_hashes.report(json.loads(code_hashes.RECORD.read_text()), code_hashes.current(), versions.VERSIONS)
    if report:
        pytest.fail(report, pytrace=False)


def test_every_module_has_a_part_or_is_excluded() -> None:
    names = {
        path.stem for path in code_hashes.SOURCES.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert names - LEFT_OUT == {name for listed in code_hashes.PARTS.values() for name in listed}


def test_code_hash_ignores_docstrings_but_not_constants() -> None:
    source = '"""A module."""\n\n\ndef half(x: float) -> float:\n    """Halve."""\n    return x / 2  # exactly\n'
    assert code_hashes.code_hash(source) == code_hashes.code_hash(
        source.replace("Halve", "Return half").replace("  # exactly", "")
    )
    assert code_hashes.code_hash(source) != code_hashes.code_hash(source.replace("/ 2", "/ 3"))


def test_report_lists_modules_and_what_to_do() -> None:
    recorded = {"data": {"version": 1, "modules": {"data/stack.py": "a", "data/mask.py": "b"}}}
    report = code_hashes.report(recorded, {"data": {"data/stack.py": "c", "data/mask.py": "b"}}, {"data": 1})
    assert "  data (version 1): data/stack.py\n" in report
    assert "raise the part's version in src/talud/versions.py" in report
    assert report.endswith(f"record the code with: {code_hashes.COMMAND}")
    assert "data (version 2, was 1): no module" in code_hashes.report(
        recorded, {"data": recorded["data"]["modules"]}, {"data": 2}
    )
    assert code_hashes.report(recorded, {"data": recorded["data"]["modules"]}, {"data": 1}) == ""


def test_versions_file_of_the_repository_is_current() -> None:
    assert yaml.safe_load((ROOT / versions.FILE_NAME).read_text()) == versions.VERSIONS


def test_pipeline_depends_on_versions_not_on_sources() -> None:
    pipeline = (ROOT / "dvc.yaml").read_text()
    assert "src/" not in pipeline
    for name, stage in yaml.safe_load(pipeline)["stages"].items():
        (listed,) = [param["versions.yaml"] for param in stage.get("do", stage)["params"] if "versions.yaml" in param]
        assert listed, name
        assert set(listed) <= set(versions.VERSIONS)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project without talud's sources, as a user of the wheel has it."""
    for name in ("dvc.yaml", "params.yaml", versions.FILE_NAME):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_equal_versions_give_no_warning(project: Path, recwarn: pytest.WarningsRecorder) -> None:
    (project / "deeper").mkdir()
    versions.check_project(project / "deeper")
    versions.check_project(project.parent)  # no project
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "versions.yaml: file not found, but dvc.yaml depends on it"),
        ("data: 1\ntraining: 0\ninference: 1\n", "states training 0, evaluation missing, but talud "),
        ("[", "versions.yaml: is not a file of talud's versions"),
        ("- data", "versions.yaml: is not a file of talud's versions"),
    ],
)
def test_other_versions_fail_a_stage_and_warn_otherwise(
    project: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    path = project / versions.FILE_NAME
    path.unlink() if content is None else path.write_text(content)
    with pytest.warns(TaludWarning, match=re.escape(message) + ".*; run talud versions, then dvc status"):
        versions.check_project(project)
    monkeypatch.setenv("DVC_STAGE", "train@7band")
    with pytest.raises(ParamsError, match=re.escape(message) + ".*; run talud versions, then dvc repro"):
        versions.check_project(project)
    versions.write_versions(project)
    versions.check_project(project)


def test_older_pipeline_gives_a_one_line_warning(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = project / "dvc.yaml"
    pipeline.write_text(re.sub(r"\n +- versions.yaml.*", "", pipeline.read_text()))
    monkeypatch.setenv("DVC_STAGE", "train@7band")
    with pytest.warns(TaludWarning, match="was written for an earlier talud and does not read versions.yaml") as said:
        versions.check_project(project)
    assert len(said) == 1


@pytest.mark.slow
def test_dvc_repeats_stages_only_for_raised_versions(tmp_path: Path) -> None:
    """Check `dvc status` in a clone.

    Its dvc.lock states the present versions, as if its stages had run.
    """
    root = clone(tmp_path / "project")
    (root / "data.dvc").unlink()
    for name in (
        *(f"stacks/synthetic_argelia{end}" for end in (".tif", ".mask.tif")),
        "stacks/training/synthetic_argelia.json",
        *(f"models/3band{end}" for end in (".onnx", ".trials.json")),
        "data/synthetic_argelia/dtm.tif",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    stages = "stack@synthetic_argelia train@3band"

    def dvc(command: str) -> subprocess.CompletedProcess[str]:
        return run_shell(f"dvc {command}", root, VENV, DVC_NO_ANALYTICS="true")

    def stale() -> dict[str, list[object]]:
        return json.loads(dvc(f"status --json {stages}").stdout)

    assert dvc(f"commit --force {stages}").returncode == 0
    assert stale() == {}
    for source in (root / "src" / "talud" / "training").glob("*.py"):
        source.write_text(source.read_text().replace('"""', '"""Reworded. ', 1))
    assert stale() == {}
    state = (root / "versions.yaml").read_text()
    (root / "versions.yaml").write_text(re.sub(r"training: \d+", "training: 99", state))
    assert stale() == {"train@3band": [{"changed deps": {"versions.yaml": {"training": "modified"}}}]}
    refused = dvc("repro --single-item train@3band")
    assert (
        f"versions.yaml: states training 99, but talud {version('talud')} has training {versions.VERSIONS['training']}"
        in refused.stderr
    )
    assert "run talud versions, then dvc repro" in refused.stderr
    assert run_shell("talud versions", root, VENV).returncode == 0
    assert (root / "versions.yaml").read_text() == state
    assert "changed deps" not in str(stale())
