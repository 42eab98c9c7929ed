"""Fresh clones of this repository, and commands run in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import distribution
from importlib.util import cache_from_source
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SITE_PACKAGES = Path(f"python{sys.version_info.major}.{sys.version_info.minor}") / "site-packages"


def clone(folder: Path) -> Path:
    """Clone this repository with uncommitted changes, without its map records."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--modified", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.split("\0"):
        if not name or name.startswith(".talud/"):
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    return folder


def required_packages(name: str, extra: str = "") -> set[str]:
    """Return the installed distributions that a distribution with an extra needs."""
    found: set[str] = set()
    pending = [(name, extra)]
    seen = set(pending)
    while pending:
        name, extra = pending.pop()
        for text in distribution(name).requires or []:
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            needed = canonicalize_name(requirement.name)
            found.add(needed)
            new = {(needed, one) for one in ("", *requirement.extras)} - seen
            seen |= new
            pending += new
    return found


def link_packages(names: set[str], venv: Path) -> None:
    """Link distributions of this environment into another one.

    Hard links are used if the file system supports them. An installer that replaces a file in the other environment
    does not change this one.
    """
    for name in names:
        for file in distribution(name).files or []:
            source, target = Path(file.locate()), Path(os.path.normpath(venv / "lib" / SITE_PACKAGES / file))
            if target.parent == venv / "bin":
                _write_program(source, target, venv)
                continue
            _link(source, target)
            if file.suffix == ".py":  # an installer lists compiled modules only where it compiles them itself
                compiled = Path(cache_from_source(str(source)))
                _link(compiled, target.parent / compiled.parent.name / compiled.name)


def _link(source: Path, target: Path) -> None:
    if target.exists() or not source.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write_program(source: Path, target: Path, venv: Path) -> None:
    """Copy a program; a script gets the other environment's Python."""
    content = source.read_bytes()
    if content.startswith(b"#!") and b"python" in content.split(b"\n", 1)[0]:
        content = f"#!{venv / 'bin/python'}\n".encode() + content.split(b"\n", 1)[1]
    target.write_bytes(content)
    target.chmod(0o755)


@dataclass(frozen=True)
class Demo:
    """Fresh clone in which `make demo` has run, with its output."""

    root: Path
    output: str

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the clone with its environment activated."""
        return run_shell(command, self.root, self.root / ".venv", **environment)


def run_shell(command: str, root: Path, venv: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command with an environment's programs first on the path."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=root,
        env=os.environ | {"PATH": f"{venv / 'bin'}:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
