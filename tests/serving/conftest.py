"""Fixtures of the service tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service_process import add_champion
from stack_files import noise, write_stack


@pytest.fixture(scope="session")
def service_project(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with a model, a small raster and one of 16 tiles."""
    root = tmp_path_factory.mktemp("service") / "project"
    (root / "stacks").mkdir(parents=True)
    (root / "params.yaml").write_text("seed: 1\n")
    add_champion(root, "3band", tiny_model)
    write_stack(root / "stacks/small.tif", noise(120, 160))
    write_stack(root / "stacks/large.tif", np.kron(noise(50, 50), np.ones((50, 50), np.float32)))
    return root
