"""Command blocks of the documentation, and who runs them.

A block is preceded by `<!-- run by tests/FILE.py::TEST -->` or by `<!-- not run: REASON -->`. The test that a block
names gets it from here, so that what is documented is what is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fresh_clone import ROOT

COMMANDS = {"sh", "bash", "console", "python"}
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w{}-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
_MARKER = re.compile(r"<!-- (?:run by (?P<test>tests/[\w/]+\.py::\w+)|not run: (?P<reason>[^>]+)) -->\n\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: path of the page below the repository.
        line: number of the line of its fence.
        language: language of the fence; empty if it states none.
        code: text of the block.
        test: test that runs it; None if none does.
        reason: why no test runs it; None if a test does, or nothing is stated.
    """

    page: str
    line: int
    language: str
    code: str
    test: str | None
    reason: str | None


def pages() -> list[Path]:
    """Return the pages with checked commands: README, tutorials, how-to guides."""
    return [
        ROOT / "README.md",
        *sorted((ROOT / "docs/tutorials").glob("*.md")),
        *sorted((ROOT / "docs/how-to").glob("*.md")),
    ]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        before = text[: found.start()]
        marker = _MARKER.search(before)
        yield Block(
            str(page.relative_to(ROOT)),
            before.count("\n") + 1,
            found["language"],
            found["code"],
            marker["test"] if marker else None,
            marker["reason"] if marker else None,
        )


def run_by(test: str) -> list[Block]:
    """Return the blocks that name a test, in the order of the pages.

    Args:
        test: the test as `tests/FILE.py::TEST`.
    """
    found = [block for page in pages() for block in blocks(page) if block.test == test]
    assert found, f"no page names {test}"
    return found
