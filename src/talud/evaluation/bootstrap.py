"""Block bootstrap: confidence intervals of scores and of score differences.

Errors of neighbouring pixels are correlated, so a bootstrap of pixels would give intervals that are far too narrow.
Instead, whole blocks (or patches) are drawn with replacement, the counts of all maps in a block together
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
# With fewer blocks, percentile intervals are known to be too narrow.
FEW_BLOCKS = 20
# Draw counts (resamples × blocks) that are in memory at a time.
_MAX_DRAWS_IN_MEMORY = 4_000_000
_F1 = SCORES.index("f1")

# Function from summed counts, (…, counts), to values, (…, values).
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """Score with its 95 % confidence interval.

    Attributes:
        estimate: score of all pixels.
        low: lower end of the interval.
        high: upper end of the interval.
        blocks: number of blocks that were resampled. With fewer than two, the interval is the full range of the score.
        resamples: number of resamples.
    """

    estimate: float
    low: float
    high: float
    blocks: int
    resamples: int


@dataclass(frozen=True)
class Difference(Interval):
    """Difference in F1 of two maps of the same pixels, with its interval."""

    @property
    def worse(self) -> bool:
        """True if the whole interval is below 0."""
        return self.high < 0

    @property
    def better(self) -> bool:
        """True if the whole interval is above 0."""
        return self.low > 0

    def __str__(self) -> str:
        interval = f"95 % interval {self.low:+.3f} to {self.high:+.3f}"
        few = "; with so few, it is too narrow" if self.blocks < FEW_BLOCKS else ""
        return f"{self.estimate:+.3f} ({interval} over {self.blocks} block{'s'[: self.blocks != 1]}{few})"


def score_intervals(counts: NDArray[np.int64], resamples: int, seed: int) -> dict[str, Interval]:
    """Bootstrap the interval of each of the `SCORES`.

    Args:
        counts: int64 (blocks, 4): TP, FP, FN and TN of a map in each block.
        resamples: number of resamples.
        seed: seed of the random draws.
    """
    estimates = scores(counts.sum(axis=0)).tolist()
    if len(counts) < 2:
        lows, highs = [-1.0 if name == "mcc" else 0.0 for name in SCORES], [1.0] * len(SCORES)
    else:
        lows, highs = _interval_ends(counts, scores, resamples, seed).tolist()
    rows = zip(SCORES, estimates, lows, highs, strict=True)
    return {name: Interval(estimate, low, high, len(counts), resamples) for name, estimate, low, high in rows}


def f1_difference(ours: NDArray[np.int64], theirs: NDArray[np.int64], resamples: int, seed: int) -> Difference:
    """Bootstrap the difference in F1 of two maps.

    Args:
        ours: int64 (blocks, 4): TP, FP, FN and TN of the first map in each block.
        theirs: counts of the second map in the same blocks; same shape.
        resamples: number of resamples.
        seed: seed of the random draws.
    """

    def difference(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return scores(sums[..., :4])[..., [_F1]] - scores(sums[..., 4:])[..., [_F1]]

    both = np.concatenate([ours, theirs], axis=1)
    low, high = (-1.0, 1.0) if len(both) < 2 else _interval_ends(both, difference, resamples, seed)[:, 0].tolist()
    return Difference(float(difference(both.sum(axis=0))[0]), low, high, len(both), resamples)


def _interval_ends(counts: NDArray[np.int64], statistic: Statistic, resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the lower and upper interval ends of a statistic, (2, values).

    Args:
        counts: (blocks, counts), at least two blocks; sums are below 2^53, so that float64 holds them exactly.
        statistic: function of the counts summed over blocks.
        resamples: number of resamples.
        seed: seed of the random draws.
    """
    blocks, generator = len(counts), np.random.default_rng(seed)
    spread, at_once = [], max(_MAX_DRAWS_IN_MEMORY // blocks, 1)
    for start in range(0, resamples, at_once):
        # The sums depend only on how often each block is drawn.
        drawn = generator.multinomial(blocks, np.full(blocks, 1 / blocks), min(at_once, resamples - start))
        spread.append(statistic(drawn.astype(np.float64) @ counts.astype(np.float64)))
    return np.quantile(np.concatenate(spread), [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2], axis=0)
