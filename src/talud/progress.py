"""Reports of how far a long computation is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

# A callback that takes how many steps are done, and how many there are.
Progress = Callable[[int, int], None]

_Item = TypeVar("_Item")


def tracked(items: Iterable[_Item], progress: Progress | None, total: int, done: int = 0) -> Iterator[_Item]:
    """Yield items, and report each one as done when the next one is asked for.

    Args:
        items: the items to work on.
        progress: the callback; None reports nothing.
        total: the number of steps of the whole computation.
        done: the number of steps before the first of these items.
    """
    for number, item in enumerate(items, done + 1):
        yield item
        if progress:
            progress(number, total)
