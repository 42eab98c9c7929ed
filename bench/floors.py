"""Two floors that a model must beat: everything is landslide, and the best single slope threshold.

    python bench/floors.py TRAINING_AREA TRANSFER_AREA

The slope threshold (landslide where the slope is at least so steep) is the one of the highest F1 in the training
area, by whole degrees; both floors are scored in the transfer area.
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
    """Slope in degrees and mask of an area, both (height, width)."""
    with rasterio.open(project.stack(area)) as stack, rasterio.open(project.mask(area)) as mask:
        return stack.read(stack.descriptions.index("slope") + 1), mask.read(1)


def above(threshold: float, slope: NDArray[np.float32], mask: NDArray[np.uint8]) -> Confusion:
    """The counts of the map that calls everything at least as steep a landslide."""
    return confusion(slope >= threshold, mask, np.isfinite(slope))


def main(training: str, transfer: str) -> None:
    """Print both floors."""
    project = Project.find(Path.cwd())
    slope, mask = read(project, training)
    threshold = max(range(0, 90), key=lambda degrees: above(degrees, slope, mask).f1)
    slope, mask = read(project, transfer)
    print(f"everything is landslide: F1 {above(0, slope, mask).f1:.4f}")
    print(f"slope of at least {threshold}° (chosen in {training}): F1 {above(threshold, slope, mask).f1:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
