"""Tests of reports of progress."""

from __future__ import annotations

from talud.progress import tracked


def test_an_item_is_reported_after_the_work_on_it() -> None:
    events: list[object] = []
    for item in tracked("abc", lambda done, total: events.append((done, total)), total=5, done=2):
        events.append(item)
    assert events == ["a", (3, 5), "b", (4, 5), "c", (5, 5)]


def test_without_a_callback_nothing_is_reported() -> None:
    assert list(tracked("ab", None, 2)) == ["a", "b"]
