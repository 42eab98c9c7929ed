"""The area of a class from a map and a sample of its errors: the stratified estimator.

P. Olofsson, G. M. Foody, M. Herold, S. V. Stehman, C. E. Woodcock and M. A. Wulder, Good practices for estimating area
and assessing accuracy of land change, Remote Sensing of Environment 148, 2014, equations 9 to 11. The strata are the
classes of the map. What is mapped as one class holds a share of landslide, which the sample tells; weighted by the
classes' areas, these shares give the area of landslide, those that the map misses included.

The sample here is not of pixels that were drawn one by one, but of whole blocks, in which pixels err together. Its
variance is larger, by the design effect (L. Kish, Survey Sampling, 1965, section 5.4), which is found from the blocks:
the ultimate-cluster variance of a ratio (W. G. Cochran, Sampling Techniques, 3rd edition, 1977, section 6.13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Design:
    """How much less a sample of blocks says than one of as many pixels.

    Attributes:
        effects: of the landslide share of what is mapped as landslide, and as background: the ratio of variances, at
            least 1.
        correlation: of the two shares, between blocks.
    """

    effects: tuple[float, float]
    correlation: float

    @classmethod
    def of(cls, blocks: NDArray[np.int64]) -> Design:
        """The design of blocks (blocks, 4) of TP, FP, FN and TN; of fewer than two it says nothing: 1, 1 and 0."""
        found, sampled = blocks[:, [0, 2]], blocks[:, [0, 2]] + blocks[:, [1, 3]]
        in_all = sampled.sum(axis=0)
        if len(blocks) < 2 or in_all.min() < 2:
            return cls((1.0, 1.0), 0.0)
        share = found.sum(axis=0) / in_all
        residuals = (found - share * sampled) / in_all
        covariance = len(blocks) / (len(blocks) - 1) * residuals.T @ residuals
        singly = share * (1 - share) / (in_all - 1)
        effects = [max(float(covariance[i, i] / singly[i]), 1.0) if singly[i] else 1.0 for i in range(2)]
        spread = float(np.sqrt(covariance[0, 0] * covariance[1, 1]))
        correlation = float(np.clip(covariance[0, 1] / spread, -1, 1)) if spread else 0.0
        return cls((effects[0], effects[1]), correlation)


@dataclass(frozen=True)
class Interval:
    """A share of an area, and between which two it lies with 95 % confidence; all 0 to 1."""

    estimate: float
    low: float
    high: float


def stratified(
    found: Sequence[int],
    sampled: Sequence[int],
    weights: Sequence[float],
    design: Design | None = None,
    degrees: int | None = None,
) -> Interval:
    """The share of a class in an area (equations 9 to 11).

    Args:
        found: for each class of the map, how many sampled pixels are of the class that is asked for.
        sampled: for each class of the map, how many pixels were sampled, at least 2.
        weights: for each class of the map, its share of the mapped area; they add up to 1.
        design: of a sample of blocks, for two classes. Default: pixels were drawn one by one.
        degrees: of freedom of Student's t, one less than there are blocks. Default: as many as you like (1.96).
    """
    counts, weight = np.array(sampled, np.float64), np.array(weights, np.float64)
    share = np.array(found) / counts
    effects = np.ones_like(share) if design is None else np.array(design.effects)
    errors = weight * np.sqrt(effects * share * (1 - share) / (counts - 1))
    between = np.eye(len(share))
    if design is not None:
        between[0, 1] = between[1, 0] = design.correlation
    estimate, error = float(weight @ share), float(np.sqrt(max(float(errors @ between @ errors), 0.0)))
    quantile = (1 + LEVEL) / 2
    reach = error * float(ndtri(quantile) if degrees is None else stdtrit(degrees, quantile))
    return Interval(estimate, max(estimate - reach, 0.0), min(estimate + reach, 1.0))
