"""Hashes of the code behind each part of `talud.versions`.

Run as a program, it records the current hashes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parent.parent / "src" / "talud"
RECORD = Path(__file__).with_suffix(".json")
PYTHON = (3, 11)  # the abstract syntax tree differs between versions of Python
# Packages and root modules whose code decides results, by part; code that several parts share stands with the first.
PARTS = {
    "data": ["data", "bands", "grid", "params", "raster", "source_files", "vector"],
    "training": ["training", "networks"],
    "inference": ["engine", "mapping", "products", "measurement", "quantization", "adaptation", "contract", "imaging"],
    "evaluation": ["evaluation", "confusion_map", "metrics"],
}
COMMAND = "python tests/code_hashes.py"


def code_hash(source: str) -> str:
    """Return a hash of a module's syntax tree without docstrings, comments and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


def current(sources: Path = SOURCES) -> dict[str, dict[str, str]]:
    """Return the hash of each module, by part and module."""
    return {
        part: {
            path.relative_to(sources).as_posix(): code_hash(path.read_text(encoding="utf-8"))
            for name in names
            for path in sorted([*(sources / name).rglob("*.py"), *sources.glob(f"{name}.py")])
        }
        for part, names in PARTS.items()
    }


def report(recorded: Mapping[str, Any], hashes: Mapping[str, Mapping[str, str]], versions: Mapping[str, int]) -> str:
    """Describe the parts that differ from the record; empty if none does."""
    lines = []
    for part, modules in hashes.items():
        before = recorded.get(part, {"version": 0, "modules": {}})
        changed = sorted(
            name for name in {*modules, *before["modules"]} if modules.get(name) != before["modules"].get(name)
        )
        if changed or before["version"] != versions[part]:
            raised = "" if before["version"] == versions[part] else f", was {before['version']}"
            lines.append(f"  {part} (version {versions[part]}{raised}): {', '.join(changed) or 'no module'}")
    if not lines:
        return ""
    return "\n".join(
        [
            "Code that decides results differs from tests/code_hashes.json:",
            *lines,
            "Decide for each part, and for each other part that uses the changed code: does the same project now get",
            "another stack, trial, model file, map or score?",
            "  Yes: raise the part's version in src/talud/versions.py and run: talud versions",
            "  No (names, messages, structure, speed): keep the version.",
            f"Then record the code with: {COMMAND}",
        ]
    )


def main() -> None:
    """Record the current hashes and versions."""
    from talud.versions import VERSIONS

    if sys.version_info[:2] != PYTHON:
        sys.exit(f"run this with Python {'.'.join(map(str, PYTHON))}; syntax trees differ between versions of Python")
    record = {part: {"version": VERSIONS[part], "modules": modules} for part, modules in current().items()}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
