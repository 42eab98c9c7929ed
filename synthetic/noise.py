"""Random fields."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Field = NDArray[np.float64]


def fractal(shape: tuple[int, int], exponent: float, rng: np.random.Generator, longest: float = np.inf) -> Field:
    """A Gaussian random field of mean 0 and deviation 1, made in the frequency domain; it wraps at the edges.

    Args:
        shape: (height, width).
        exponent: the amplitude falls with frequency ** -exponent; 0 is white noise, 2 a mountain range.
        rng: where the randomness comes from.
        longest: wavelength in pixels beyond which the amplitude no longer grows.
    """
    squared = fft.fftfreq(shape[0])[:, None] ** 2 + fft.rfftfreq(shape[1])[None, :] ** 2
    squared += 1.0 / longest**2
    squared[0, 0] = np.inf  # no mean
    spectrum = fft.rfft2(rng.standard_normal(shape)) * squared ** (-exponent / 2)
    field = np.asarray(fft.irfft2(spectrum, s=shape), dtype=np.float64)
    field /= field.std()
    return field
