"""Pages in a real browser.

Console messages and requests to other addresses fail the test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

NO_GRAPHICS = ("--disable-gpu",)
WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # computed by the processor


@contextmanager
def chromium(graphics: Sequence[str] = NO_GRAPHICS) -> Iterator[Browser]:
    """Yield a browser; skip the test if it is not installed."""
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is not installed")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*QUIET, *graphics])
        yield running
        running.close()


@contextmanager
def open_page(browser: Browser, address: str, size: tuple[int, int]) -> Iterator[Page]:
    """Open a page in a window of a given size, with touch if it is narrow."""
    width, height = size
    faults: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=width < 500)
    tab = context.new_page()
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("request", lambda made: None if made.url.startswith(("data:", address)) else faults.append(made.url))
    tab.goto(address)
    yield tab
    context.close()
    assert faults == []
