"""What tests of several rooms share."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fresh_clone import ROOT, Demo, clone

REAL_DATA = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the real data where it is absent; run the fast tests first."""
    if not REAL_DATA.is_dir():
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason="the real data is not at ../shared/data"))
    items.sort(key=lambda item: [item.get_closest_marker(name) is not None for name in ("demo", "slow")])


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data."""
    return REAL_DATA


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The one run of the demo that all tests marked `demo` share."""
    root = clone(tmp_path_factory.mktemp("demo") / "talud")
    result = subprocess.run(["make", "demo"], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return Demo(root, result.stdout)
