"""Confidence intervals of scores, and of differences of scores: the block bootstrap.

Neighbouring pixels err together, so pixels are no independent witnesses, and a bootstrap of pixels would be far too
sure. Whole blocks (or patches) are drawn instead, with replacement, all maps' counts of a block together
(non-overlapping blocks: Carlstein 1986, Annals of Statistics 14; percentile interval: Efron 1979, Annals of
Statistics 7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from talud.metrics import SCORES, scores

CONFIDENCE_LEVEL = 0.95
FEW_BLOCKS = 20  # blocks: below, percentile intervals are known to be too narrow
_MAX_DRAWS_IN_MEMORY = 4_000_000  # numbers of drawn blocks that are held at a time
_F1 = SCORES.index("f1")

# Of sums of counts (…, numbers), some values (…, values).
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A number that follows from a map's counts, and how far chance may move it.

    Attributes:
        estimate: of the pixels that there are.
        low: end of the 95 % interval.
        high: its other end.
        blocks: that were resampled. Of fewer than two nothing can be said: the interval then holds all values that
            the number can have.
        resamples: how many times.
    """

    estimate: float
    low: float
    high: float
    blocks: int
    resamples: int


@dataclass(frozen=True)
class Difference(Interval):
    """The F1 of one map less that of another on the same pixels, and how far chance may move it."""

    @property
    def worse(self) -> bool:
        """True if the whole interval lies below 0."""
        return self.high < 0

    @property
    def better(self) -> bool:
        """True if the whole interval lies above 0."""
        return self.low > 0

    def __str__(self) -> str:
        interval = f"95 % interval {self.low:+.3f} to {self.high:+.3f}"
        few = ", few, so that it is too narrow" if self.blocks < FEW_BLOCKS else ""
        return f"{self.estimate:+.3f} ({interval} over {self.blocks} block{'s'[: self.blocks != 1]}{few})"


def score_intervals(counts: NDArray[np.int64], resamples: int, seed: int) -> dict[str, Interval]:
    """Resample blocks with replacement, and see how each of the `SCORES` spreads.

    Args:
        counts: int64 (blocks, 4): TP, FP, FN and TN of a map in each block.
        resamples: how many times as many blocks are drawn as there are.
        seed: of the draws.
    """
    estimates = scores(counts.sum(axis=0)).tolist()
    if len(counts) < 2:
        lows, highs = [-1.0 if name == "mcc" else 0.0 for name in SCORES], [1.0] * len(SCORES)
    else:
        lows, highs = _interval_ends(counts, scores, resamples, seed).tolist()
    rows = zip(SCORES, estimates, lows, highs, strict=True)
    return {name: Interval(estimate, low, high, len(counts), resamples) for name, estimate, low, high in rows}


def f1_difference(ours: NDArray[np.int64], theirs: NDArray[np.int64], resamples: int, seed: int) -> Difference:
    """Resample blocks with replacement, and see how the difference in F1 spreads.

    Args:
        ours: int64 (blocks, 4): TP, FP, FN and TN of one map in each block.
        theirs: of the other map, in the same blocks.
        resamples: how many times as many blocks are drawn as there are.
        seed: of the draws.
    """

    def difference(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return scores(sums[..., :4])[..., [_F1]] - scores(sums[..., 4:])[..., [_F1]]

    both = np.concatenate([ours, theirs], axis=1)
    low, high = (-1.0, 1.0) if len(both) < 2 else _interval_ends(both, difference, resamples, seed)[:, 0].tolist()
    return Difference(float(difference(both.sum(axis=0))[0]), low, high, len(both), resamples)


def _interval_ends(counts: NDArray[np.int64], statistic: Statistic, resamples: int, seed: int) -> NDArray[np.float64]:
    """Lower and upper end of the interval of each value of a statistic: (2, values).

    Args:
        counts: (blocks, numbers), at least two blocks, of sums below 2^53.
        statistic: of sums over blocks.
        resamples: how many times as many blocks are drawn as there are.
        seed: of the draws.
    """
    blocks, generator = len(counts), np.random.default_rng(seed)
    spread, at_once = [], max(_MAX_DRAWS_IN_MEMORY // blocks, 1)
    for start in range(0, resamples, at_once):
        # How often each block is drawn is all that the sums need.
        drawn = generator.multinomial(blocks, np.full(blocks, 1 / blocks), min(at_once, resamples - start))
        spread.append(statistic(drawn.astype(np.float64) @ counts.astype(np.float64)))
    return np.quantile(np.concatenate(spread), [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2], axis=0)
