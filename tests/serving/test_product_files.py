"""Tests of a map's files from the service in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from chromium import chromium, open_page
from service_process import ServiceProcess, run_service
from stack_files import noise, write_stack

pytestmark = pytest.mark.slow  # starts a service in another process

HOSTILE_FILE_NAME = "<img src=x onerror=document.title=1><script>document.title=2<style>*{}.tif"


@pytest.fixture(scope="module")
def service(service_project: Path) -> Iterator[ServiceProcess]:
    raster = write_stack(service_project / "stacks" / HOSTILE_FILE_NAME, np.ascontiguousarray(noise(60, 80)))
    with run_service(service_project) as running:
        yield running
    raster.unlink()


@pytest.fixture(scope="module")
def files(service: ServiceProcess) -> dict[str, str]:
    """Map a raster with a hostile name and return the addresses of the files."""
    job = service.ask(HOSTILE_FILE_NAME)
    assert service.ended(job)["status"] == "successful"
    return {name: each["href"] for name, each in service.http.get(f"/jobs/{job}/results").json().items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def test_summary_has_styles_and_runs_no_script(files: dict[str, str], browser: Browser) -> None:
    with open_page(browser, files["summary"], (1200, 900)) as page:  # console messages fail the test
        assert HOSTILE_FILE_NAME in page.inner_text("body")
        style = "element => getComputedStyle(element)"
        assert page.evaluate(f"({style})(document.querySelector('.figures')).display") in ("grid", "flex")
        assert page.evaluate(f"({style})(document.body).display") == "block"
        bar = page.evaluate("document.querySelector('.scale i').getBoundingClientRect().width")
        scale = page.evaluate("parseFloat(document.querySelector('.scale i').style.width)")
        width = page.evaluate("document.querySelector('.scale').getBoundingClientRect().width")
        assert bar == pytest.approx(width * scale / 100, abs=2)
        assert page.evaluate("document.querySelector('figure img').naturalWidth") > 0
        assert page.title() not in ("1", "2")


def test_injected_styles_and_scripts_are_blocked(
    files: dict[str, str], service: ServiceProcess, browser: Browser
) -> None:
    policy = service.http.get(files["summary"]).headers["content-security-policy"]
    directives = {part.split()[0]: part.split()[1:] for part in policy.split("; ")}
    assert directives["default-src"] == ["'none'"]
    assert "sandbox" in directives
    assert not any(name.startswith("script") for name in directives)
    assert [value.split("-")[0] for value in directives["style-src-elem"]] == ["'sha256"]
    with browser.new_context() as context:
        page = context.new_page()
        content = service.http.get(files["summary"]).text
        injected = content.replace(
            "<body>",
            "<body onload='document.title=3'><style>h1{color:rgb(1,2,3)}</style><script>document.title=4</script>",
        )
        assert injected != content
        headers = {"Content-Type": "text/html", "Content-Security-Policy": policy}
        page.route("**/*", lambda route: route.fulfill(body=injected, headers=headers))
        page.goto(files["summary"])
        assert page.title() not in ("3", "4")
        assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") != "rgb(1, 2, 3)"


@pytest.mark.parametrize("name", ["quicklook", "record"])
def test_other_files_open_under_the_default_policy(
    name: str, files: dict[str, str], service: ServiceProcess, browser: Browser
) -> None:
    headers = service.http.get(files[name]).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; ")
    assert headers["x-content-type-options"] == "nosniff"
    messages: list[str] = []
    with browser.new_context() as context:
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.goto(files[name])
        page.wait_for_timeout(100)
    assert [text for text in messages if "404" not in text] == []  # the browser requests an icon
