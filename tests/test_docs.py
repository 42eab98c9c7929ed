"""The documents: what is generated is current, what is linked exists, what is locked has no address."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fresh_clone import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.slow
def test_the_reference_of_the_command_line_is_current(tmp_path: Path) -> None:
    out = tmp_path / "cli.md"
    command = [
        sys.executable,
        "-m",
        "typer",
        "talud.cli.main",
        "utils",
        "docs",
        "--name",
        "talud",
        "--output",
        str(out),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert out.read_text() == (ROOT / "docs" / "cli.md").read_text(), "run make docs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_the_lock_holds_names_and_versions_alone() -> None:
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9.-]+==[^\s/:]+( ; [^/]+)?", line), line


def test_the_locks_of_page_and_service_hold_no_address() -> None:
    for lock in ("page/package-lock.json", "serving/requirements.lock"):
        assert "://" not in (ROOT / lock).read_text(), lock


def test_architecture_lists_every_module() -> None:
    table = (ROOT / "docs/architecture.md").read_text().partition("## Modules")[2].partition("## Files")[0]
    listed = set(re.findall(r"^\| (?:\| |\*\*)`(\w+)`", table, flags=re.MULTILINE))
    sources = ROOT / "src/talud"
    modules = {path.stem for path in [*sources.glob("*.py"), *sources.glob("*/*.py")]} - {"__init__"}
    packages = {path.parent.name for path in [*sources.glob("*/__init__.py"), *sources.glob("*/*/__init__.py")]}
    assert listed == modules | packages
