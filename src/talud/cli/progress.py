"""Progress of commands: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_INTERVAL_SECONDS = 10.0


class ProgressCallback(Protocol):
    """Callback that reports the progress of a command."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units are finished."""


@contextmanager
def show_progress(title: str, unit: str) -> Iterator[ProgressCallback]:
    """Yield a callback that shows progress on stderr.

    Args:
        title: name of the running step, such as "mapping".
        unit: plural name of the counted items, such as "tiles".
    """
    if not sys.stderr.isatty():
        yield _plain_lines(title, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    note_column = TextColumn("{task.fields[note]}")
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, note_column, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, note="")

        def report(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield report


def _plain_lines(title: str, unit: str) -> ProgressCallback:
    last = time.monotonic()

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_INTERVAL_SECONDS:
            last = time.monotonic()
            print(f"{title}: {done} of {total} {unit}{note and ', '}{note}", file=sys.stderr, flush=True)

    return report
