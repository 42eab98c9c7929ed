"""Calibration of probabilities by Platt scaling of the last layer.

J. C. Platt, Probabilistic outputs for support vector machines and comparisons to regularized likelihood methods, 1999:
logit' = slope * logit + offset, with the maximum likelihood on pixels that were not used for training. A network that
was trained with the Dice loss is overconfident: its logits reach hundreds, and its probabilities are nearly always 0 or
1. The scaling is therefore fitted to logits, not to probabilities.
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
    """Linear scaling of logits: slope * logit + offset."""

    slope: float
    offset: float

    def probability(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probabilities of logits of any shape; NaN remains NaN."""
        probability: NDArray[np.float64] = expit(self.slope * logits + self.offset)
        return probability


IDENTITY = PlattScaling(1.0, 0.0)


def fit_platt_scaling(logits: NDArray[np.float64], landslide: NDArray[np.bool_]) -> PlattScaling:
    """Return the Platt scaling with the maximum likelihood.

    As in Platt (1999), the target of a class of n pixels is (n + 1) / (n + 2) instead of 1, and that of the other class
    1 / (n + 2) instead of 0. The scaling is then finite even if the logits separate the classes perfectly.

    Args:
        logits: finite logits of pixels, (pixels,).
        landslide: landslide mask of the pixels, (pixels,).

    Returns:
        The scaling. Its slope may be negative, and is 0 if all logits are equal.
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

    solution = minimize(cost, np.zeros(2), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9}).x
    slope = float(solution[0]) / width
    return PlattScaling(slope, float(solution[1]) - slope * centre)


@dataclass(frozen=True)
class SiteLogits:
    """Source of a Keras model's logits in windows of a site.

    Attributes:
        model: model whose last layer is a 1 × 1 convolution with a sigmoid.
        contract: contract of the model.
        site: labelled site to map.
    """

    model: keras.Model
    contract: Contract
    site: Site

    def probabilities(self, windows: Sequence[Window]) -> Iterator[NDArray[np.float64]]:
        """Yield the logits of each window, NaN where not mapped."""
        for values in self.site.read_windows(self.contract, windows):
            mapped = coverage.unmapped_codes(values, self.contract) == 0
            yield np.where(mapped, compute_logits(self.model, values, self.contract.input.alignment), np.nan)


def compute_logits(model: keras.Model, stack: NDArray[np.float32], alignment: int) -> NDArray[np.float64]:
    """Return the logits of a model in double precision.

    Args:
        model: model whose last layer is a 1 × 1 convolution with a sigmoid.
        stack: stack (bands, height, width) of any size, in physical units, NaN where invalid.
        alignment: number of which the sides of the network's input are multiples.

    Returns:
        Logits (height, width), finite at invalid pixels too.
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


def apply_to_last_layer(model: keras.Model, scaling: PlattScaling) -> None:
    """Scale a model's logits by changing its last layer in place."""
    kernel, bias = (weights.astype(np.float64) for weights in model.layers[-1].get_weights())
    scaled = scaling.slope * kernel, scaling.slope * bias + scaling.offset
    model.layers[-1].set_weights([weights.astype(np.float32) for weights in scaled])
