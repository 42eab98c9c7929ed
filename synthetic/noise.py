"""Random fields."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Field = NDArray[np.float64]


def fractal_field(shape: tuple[int, int], exponent: float, rng: np.random.Generator, longest: float = np.inf) -> Field:
    """Return a periodic Gaussian random field with mean 0 and standard deviation 1.

    Args:
        shape: (height, width).
        exponent: exponent of the spectrum: amplitude ~ frequency ** -exponent; 0 is white noise, 2 resembles mountains.
        rng: random number generator.
        longest: wavelength in pixels above which the amplitude is constant.
    """
    squared = fft.fftfreq(shape[0])[:, None] ** 2 + fft.rfftfreq(shape[1])[None, :] ** 2
    squared += 1.0 / longest**2
    squared[0, 0] = np.inf  # no mean
    spectrum = fft.rfft2(rng.standard_normal(shape)) * squared ** (-exponent / 2)
    field = np.asarray(fft.irfft2(spectrum, s=shape), dtype=np.float64)
    field /= field.std()
    return field
