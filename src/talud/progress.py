"""Progress reports of long computations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

# Callback that receives the number of finished steps and the number of all steps.
Progress = Callable[[int, int], None]

_Item = TypeVar("_Item")


def tracked(items: Iterable[_Item], progress: Progress | None, total: int, done: int = 0) -> Iterator[_Item]:
    """Yield items, and report each as done afterwards.

    Args:
        items: items to work on.
        progress: callback for the progress; None reports nothing.
        total: number of steps of the whole computation.
        done: number of steps that were done before the first item.
    """
    for number, item in enumerate(items, done + 1):
        yield item
        if progress:
            progress(number, total)
