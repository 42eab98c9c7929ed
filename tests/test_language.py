"""Rules for docstrings and for the names of tests."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator

import pytest

from fresh_clone import ROOT

DOCUMENTED = ("src", "bench", "pretrained", "synthetic", "team")
RELATIVE_CLAUSE = re.compile(r"(What|Which|Whether|Whose|Those|That|How|Where|Who|By what)\b")
MAX_FIRST_LINE_CHARACTERS = 80
MAX_MEDIAN_WORDS = 9
MAX_TEST_NAME_CHARACTERS = 60


def parsed(folder: str) -> Iterator[tuple[str, ast.Module]]:
    """Yield the path and the syntax tree of each Python file below a folder."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def summaries(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the location and the first line of each docstring below a folder."""
    for path, tree in parsed(folder):
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    yield f"{path}:{getattr(node, 'lineno', 1)}", docstring.splitlines()[0]


@pytest.mark.parametrize("folder", [*DOCUMENTED, "tests"])
def test_docstrings_open_with_no_relative_clause(folder: str) -> None:
    assert [(place, line) for place, line in summaries(folder) if RELATIVE_CLAUSE.match(line)] == []


@pytest.mark.parametrize("folder", DOCUMENTED)
def test_first_lines_of_docstrings_are_short_sentences(folder: str) -> None:
    lines = dict(summaries(folder))
    assert {place: line for place, line in lines.items() if len(line) > MAX_FIRST_LINE_CHARACTERS} == {}
    assert {place: line for place, line in lines.items() if not line.endswith(".")} == {}


def test_median_first_line_has_at_most_nine_words() -> None:
    assert statistics.median(len(line.split()) for _, line in summaries("src")) <= MAX_MEDIAN_WORDS


def test_names_of_tests_have_at_most_60_characters() -> None:
    names = {
        f"{path}:{node.lineno}": node.name
        for path, tree in parsed("tests")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }
    assert len(names) > 1000
    assert {place: name for place, name in names.items() if len(name) > MAX_TEST_NAME_CHARACTERS} == {}
