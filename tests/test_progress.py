"""Tests of reports of progress."""

from __future__ import annotations

from talud.progress import tracked


def test_tracked_reports_an_item_after_its_work() -> None:
    events: list[object] = []
    for item in tracked("abc", lambda done, total: events.append((done, total)), total=5, done=2):
        events.append(item)
    assert events == ["a", (3, 5), "b", (4, 5), "c", (5, 5)]


def test_tracked_without_callback_reports_nothing() -> None:
    assert list(tracked("ab", None, 2)) == ["a", "b"]
