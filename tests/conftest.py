"""What tests of several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
