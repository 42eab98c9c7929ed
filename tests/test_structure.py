"""Tests of the figures of the code's structure and their limits."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("structure", ROOT / "bench" / "structure.py")
assert _spec is not None
assert _spec.loader is not None
structure = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = structure
_spec.loader.exec_module(structure)

STEPS = "\n".join(f"value_{number} = {number}" for number in range(6))


@pytest.mark.slow
def test_structure_figures_are_within_their_limits() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "bench" / "structure.py"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout


def test_cycle_of_three_modules_is_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert structure.cycles(imports) == [["a", "b", "c"]]


def test_upward_and_sideways_imports_violate_the_layers() -> None:
    layers = ["x.top", "x.left | x.right", "x.low"]
    imports = {"x.low.one": {"x.top"}, "x.left": {"x.right", "x.low.one"}, "x.top": {"x.low"}}
    assert structure.against_layers(imports, layers) == ["x.left → x.right", "x.low.one → x.top"]


def test_duplicates_ignore_indentation_and_comments() -> None:
    indented = 'def f():\n    """Text."""\n    # why\n' + "".join(f"    {line}\n" for line in STEPS.splitlines())
    pairs = structure.duplicates({Path("a.py"): STEPS, Path("b.py"): indented})
    assert pairs == [((Path("a.py"), 1, 6), (Path("b.py"), 4, 9))]


def test_five_equal_lines_are_no_duplicate() -> None:
    assert structure.duplicates({Path("a.py"): STEPS, Path("b.py"): STEPS.replace("_5", "_6")}) == []


def test_function_lines_and_parameters_are_counted() -> None:
    source = "def f(self, a, *b, c=1, **d):\n    'Text.'\n    x = 1\n\n    return x\n"
    (function,) = ast.parse(source).body
    assert (structure.body_lines(function), structure.parameters(function)) == (3, 4)
