"""Fresh clones of this repository, and commands run in them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def clone(folder: Path) -> Path:
    """Clone this repository with changes that are not committed, but without its own records of maps."""
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


@dataclass(frozen=True)
class Demo:
    """A fresh clone in which `make demo` has run once, and what it printed."""

    root: Path
    output: str

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the clone, as a newcomer who has activated its environment."""
        return run_shell(command, self.root, self.root / ".venv", **environment)


def run_shell(command: str, root: Path, venv: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in `root` with an environment's programs first on the path."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=root,
        env=os.environ | {"PATH": f"{venv / 'bin'}:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
