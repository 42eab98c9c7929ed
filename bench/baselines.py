"""Two baselines without training: all pixels landslide, and a slope threshold.

    python bench/baselines.py TRAINING_AREA TRANSFER_AREA

The slope threshold is the whole degree with the highest F1 in the training area. Both baselines are scored in the
transfer area.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from talud.metrics import Confusion, confusion
from talud.project import Project


def read(project: Project, area: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return slope in degrees and mask of an area, both (height, width)."""
    with rasterio.open(project.stack(area)) as stack, rasterio.open(project.mask(area)) as mask:
        return stack.read(stack.descriptions.index("slope") + 1), mask.read(1)


def threshold_slope(threshold: float, slope: NDArray[np.float32], mask: NDArray[np.uint8]) -> Confusion:
    """Return the confusion counts of mapping pixels at or above a slope as landslide."""
    return confusion(slope >= threshold, mask, np.isfinite(slope))


def main(training: str, transfer: str) -> None:
    """Print the F1 of both baselines."""
    project = Project.find(Path.cwd())
    slope, mask = read(project, training)
    threshold = max(range(0, 90), key=lambda degrees: threshold_slope(degrees, slope, mask).f1)
    slope, mask = read(project, transfer)
    print(f"everything is landslide: F1 {threshold_slope(0, slope, mask).f1:.4f}")
    print(f"slope of at least {threshold}° (chosen in {training}): F1 {threshold_slope(threshold, slope, mask).f1:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
