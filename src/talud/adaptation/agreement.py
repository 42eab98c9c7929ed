"""How far a model agrees with itself, however a raster lies: a sign, without labels, of how well it knows what it sees.

A landslide stays one when its image is turned or mirrored. A network is not told so by its form, only by what it
learned from; where an image is like that, its eight maps resemble each other, and where it is not, they fall apart.
The resemblance is Matthews' correlation coefficient, which is 0 for a map without any landslide, or full of them: the
mere share of equal pixels would call these the best.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from talud import metrics
from talud.engine import coverage
from talud.engine.runtime import Model
from talud.engine.symmetry import SYMMETRIES
from talud.metrics import Confusion


def agreement(model: Model, squares: NDArray[np.float32]) -> float:
    """The mean correlation of a model's map with the seven that it makes of the same squares turned and mirrored.

    Args:
        model: to run, at its own threshold.
        squares: (squares, bands, side, side), in contract order, NaN where invalid.

    Returns:
        -1 to 1; 0 where it maps nothing, or everything, as landslide.

    Raises:
        ModelError: the network fails.
    """
    counts = [Confusion() for _ in SYMMETRIES[1:]]
    for square in squares:
        mapped = coverage.blocked(square, model.contract) == 0
        straight, *turned = _landslides(model, square)
        counts = [
            count + metrics.confusion(other, straight.astype(np.uint8), mapped)
            for count, other in zip(counts, turned, strict=True)
        ]
    return float(np.mean([count.mcc for count in counts]))


def _landslides(model: Model, square: NDArray[np.float32]) -> Iterator[NDArray[np.bool_]]:
    """Where a model maps landslides in a square, by each of the eight ways in which it can lie, as it is first."""
    for symmetry in SYMMETRIES:
        probability = model.probability(np.ascontiguousarray(symmetry.turned(square)))
        yield symmetry.turned_back(probability) >= model.contract.measured.threshold
