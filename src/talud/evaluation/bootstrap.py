"""Whether a difference in F1 is more than chance: the block bootstrap.

Neighbouring pixels err together, so pixels are no independent witnesses, and a bootstrap of pixels would be far too
sure. Whole blocks are drawn instead, with replacement, both maps' counts of a block together (non-overlapping blocks:
Carlstein 1986, Annals of Statistics 14; percentile interval: Efron 1979, Annals of Statistics 7).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
FEW = 20  # blocks: below, percentile intervals are known to be too narrow
_AT_ONCE = 4_000_000  # numbers of drawn blocks that are held at a time


@dataclass(frozen=True)
class Difference:
    """The F1 of one map less that of another on the same pixels, and how far chance may move it.

    Attributes:
        estimate: of the pixels that there are.
        low: end of the 95 % interval.
        high: its other end.
        blocks: that were resampled. Of fewer than two nothing can be said: the interval then is −1 to 1, all values
            that a difference can have.
        resamples: how many times.
    """

    estimate: float
    low: float
    high: float
    blocks: int
    resamples: int

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high < 0

    @property
    def better(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0

    def __str__(self) -> str:
        interval = f"95 % interval {self.low:+.3f} to {self.high:+.3f}"
        few = ", few, so that it is too narrow" if self.blocks < FEW else ""
        return f"{self.estimate:+.3f} ({interval} over {self.blocks} block{'s'[: self.blocks != 1]}{few})"


def f1(counts: NDArray[np.integer] | NDArray[np.floating]) -> NDArray[np.float64]:
    """2 TP / (2 TP + FP + FN) of counts (…, 4) of TP, FP, FN, TN; 0 where that is 0 / 0, as in `metrics`."""
    hits = 2 * counts[..., 0].astype(np.float64)
    all_pixels = hits + counts[..., 1] + counts[..., 2]
    return np.divide(hits, all_pixels, out=np.zeros_like(hits), where=all_pixels > 0)


def f1_difference(ours: NDArray[np.int64], theirs: NDArray[np.int64], resamples: int, seed: int) -> Difference:
    """Resample blocks with replacement, and see how the difference in F1 spreads.

    Args:
        ours: int64 (blocks, 4): TP, FP, FN and TN of one map in each block.
        theirs: of the other map, in the same blocks.
        resamples: how many times as many blocks are drawn as there are.
        seed: of the draws.
    """
    blocks = len(ours)
    estimate = float(f1(ours.sum(axis=0)) - f1(theirs.sum(axis=0)))
    if blocks < 2:
        return Difference(estimate, -1.0, 1.0, blocks, resamples)
    generator = np.random.default_rng(seed)
    spread, at_once = [], max(_AT_ONCE // blocks, 1)
    for start in range(0, resamples, at_once):
        # How often each block is drawn is all that the sums need.
        drawn = generator.multinomial(blocks, np.full(blocks, 1 / blocks), min(at_once, resamples - start))
        spread.append(f1(drawn @ ours) - f1(drawn @ theirs))
    low, high = np.quantile(np.concatenate(spread), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(estimate, float(low), float(high), blocks, resamples)
