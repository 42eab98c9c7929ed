"""Tests of the start of the service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service_process import free_port, wait_for


@pytest.mark.slow
def test_serve_opens_page_in_browser(service_project: Path, tmp_path: Path) -> None:
    browser, seen = tmp_path / "browser.py", tmp_path / "seen"
    browser.write_text(
        "import sys, urllib.request\n"
        f"open({str(seen)!r}, 'w').write(f'{{urllib.request.urlopen(sys.argv[1]).status}} {{sys.argv[1]}}')\n"
    )
    port, (ours, its) = free_port(), os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "talud.cli.main", "serve", "--port", str(port)],
        cwd=service_project,
        env=os.environ | {"DISPLAY": ":0", "BROWSER": f"{sys.executable} {browser} %s"},
        stdout=its,
        stderr=its,
    )
    os.close(its)
    try:
        wait_for(seen.exists, "no browser was opened")
        wait_for(lambda: seen.read_text() == f"200 http://127.0.0.1:{port}/page/", "it was not the page")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        os.close(ours)
