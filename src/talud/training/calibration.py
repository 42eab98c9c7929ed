"""Probabilities that mean what they say: Platt scaling, which goes into the last layer.

J. C. Platt, Probabilistic outputs for support vector machines and comparisons to regularized likelihood methods, 1999:
logit' = slope * logit + offset, of the highest likelihood on pixels that the weights were not fitted to. A network that
was trained on Dice says 0 or 1 nearly everywhere, whether it knows or not: it has logits of hundreds, of which
probabilities keep nothing, so logits are what it is fitted to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window
from scipy.optimize import minimize
from scipy.special import expit

from talud.contract import Contract
from talud.engine import coverage
from talud.measurement.sites import Site


@dataclass(frozen=True)
class PlattScaling:
    """From a logit to another one: slope * logit + offset."""

    slope: float
    offset: float

    def probability(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability at a logit, of any shape; NaN stays NaN."""
        probability: NDArray[np.float64] = expit(self.slope * logits + self.offset)
        return probability


IDENTITY = PlattScaling(1.0, 0.0)


def fit_platt_scaling(logits: NDArray[np.float64], landslide: NDArray[np.bool_]) -> PlattScaling:
    """The line of the highest likelihood.

    The truth of n pixels of a class counts as (n + 1) / (n + 2), not as 1, and of the other class likewise, as Platt
    has it: the line is then finite where logits tell the classes apart without a fault.

    Args:
        logits: of pixels, (pixels,), finite.
        landslide: whether each is one, (pixels,).

    Returns:
        A line of any slope; one of slope 0 where all logits are equal.
    """
    positive = int(np.count_nonzero(landslide))
    target = np.where(landslide, (positive + 1) / (positive + 2), 1 / (len(logits) - positive + 2))
    centre, width = float(logits.mean()), float(logits.std())
    if not width > 0:
        return PlattScaling(0.0, float(np.log(target.mean() / (1 - target.mean()))))
    scaled = (logits - centre) / width

    def cost(line: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logit = line[0] * scaled + line[1]
        gap = expit(logit) - target
        return float(np.mean(np.logaddexp(0, logit) - target * logit)), np.array([np.mean(gap * scaled), gap.mean()])

    def curvature(line: NDArray[np.float64]) -> NDArray[np.float64]:
        probability = expit(line[0] * scaled + line[1])
        weight = probability * (1 - probability)
        mixed = np.mean(weight * scaled)
        return np.array([[np.mean(weight * scaled**2), mixed], [mixed, weight.mean()]])

    found = minimize(cost, np.zeros(2), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9}).x
    slope = float(found[0]) / width
    return PlattScaling(slope, float(found[1]) - slope * centre)


@dataclass(frozen=True)
class SiteLogits:
    """The logits of a Keras model in windows of a site, instead of probabilities.

    Attributes:
        model: model whose last layer is a convolution of 1 × 1 with a sigmoid.
        contract: contract of the model, which states its bands and its alignment.
        site: labelled place.
    """

    model: keras.Model
    contract: Contract
    site: Site

    def probabilities(self, windows: Sequence[Window]) -> Iterator[NDArray[np.float64]]:
        """Yield the logits of windows, NaN where nothing is mapped."""
        for values in self.site.pixels(self.contract, windows):
            mapped = coverage.blocked(values, self.contract) == 0
            yield np.where(mapped, compute_logits(self.model, values, self.contract.input.alignment), np.nan)


def compute_logits(model: keras.Model, stack: NDArray[np.float32], alignment: int) -> NDArray[np.float64]:
    """Return the logits of a model over an array, in double precision.

    Args:
        model: whose last layer is a convolution of 1 × 1 with a sigmoid.
        stack: (bands, height, width) of any height and width, physical units, NaN where invalid.
        alignment: what the network's input sides are multiples of.

    Returns:
        (height, width), with a value at invalid pixels too.
    """
    bands, height, width = stack.shape
    padded = np.full((1, -(-height // alignment) * alignment, -(-width // alignment) * alignment, bands), np.nan)
    padded[0, :height, :width] = np.moveaxis(stack, 0, -1)
    last = model.layers[-1]
    before = keras.Model(model.inputs[0], last.input)
    features = keras.ops.convert_to_numpy(before(padded.astype(np.float32), training=False))
    kernel, bias = (weights.astype(np.float64) for weights in last.get_weights())
    logit: NDArray[np.float64] = (features[0, :height, :width].astype(np.float64) @ kernel[0, 0] + bias)[..., 0]
    return logit


def apply_to_last_layer(model: keras.Model, line: PlattScaling) -> None:
    """Put a line into the last layer of a model, in place: the same graph, at no cost."""
    kernel, bias = (weights.astype(np.float64) for weights in model.layers[-1].get_weights())
    scaled = line.slope * kernel, line.slope * bias + line.offset
    model.layers[-1].set_weights([weights.astype(np.float32) for weights in scaled])
