"""Whether probabilities mean what they say: of the pixels of a probability of 0.3, three of ten should be landslide.

The reliability diagram (A. Niculescu-Mizil and R. Caruana, Predicting Good Probabilities with Supervised Learning,
ICML 2005) and the expected calibration error (`talud.metrics.Bins`), both from counts by bin, which are added up window
by window.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from typing import Self

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from talud.imaging import data_uri
from talud.metrics import BINS, ThresholdHistogram

ENOUGH = 100  # pixels of a bin, for its point to be drawn: fewer say too little
# Okabe and Ito's palette (2008): the first for the test blocks, the others for areas, over again.
_HOME, *_AWAY = "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#e69f00"


class Reliability(BaseModel):
    """Probabilities beside what they came to, over the pixels that are mapped and whose truth is known."""

    model_config = ConfigDict(frozen=True)

    expected_calibration_error: float = Field(ge=0, le=1)
    pixels: tuple[int, ...] = Field(description=f"by probability, in {BINS} bins of one width from 0 to 1")
    landslide_pixels: tuple[int, ...] = Field(description="those of them that are landslide")
    mean_probability: tuple[float | None, ...] = Field(description="of them; null where a bin is empty")

    @classmethod
    def of(cls, levels: ThresholdHistogram) -> Self:
        """What follows from counts by level, to six decimals."""
        bins = levels.bins()
        means = [
            round(float(total / pixels), 6) if pixels else None
            for total, pixels in zip(bins.probability, bins.pixels, strict=True)
        ]
        return cls(
            expected_calibration_error=round(bins.calibration_error, 6),
            pixels=tuple(bins.pixels.tolist()),
            landslide_pixels=tuple(bins.landslide.tolist()),
            mean_probability=tuple(means),
        )

    def points(self, least: int = ENOUGH) -> list[tuple[float, float]]:
        """Mean probability and landslide share of each bin of at least so many pixels."""
        rows = zip(self.mean_probability, self.landslide_pixels, self.pixels, strict=True)
        return [(mean, slides / pixels) for mean, slides, pixels in rows if mean is not None and pixels >= least]


def diagram(places: Mapping[str, Reliability]) -> str:
    """The reliability diagram as a PNG within its own address: the same bytes for the same numbers.

    Args:
        places: "test", for the test blocks, solid; areas, dashed.
    """
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 9}):
        figure = Figure(figsize=(4.2, 5.6), dpi=160, facecolor="white", layout="constrained")
        curves, shares = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
        curves.plot([0, 1], [0, 1], color="#8a938e", linewidth=0.9)
        colours = dict(zip((place for place in places if place != "test"), itertools.cycle(_AWAY), strict=False))
        for place, reliability in places.items():
            home = place == "test"
            style = {"color": colours.get(place, _HOME), "linewidth": 1.6, "linestyle": "-" if home else "--"}
            points = np.array(reliability.points()).reshape(-1, 2)
            label = f"{'test blocks' if home else place} (error {reliability.expected_calibration_error:.3f})"
            curves.plot(*points.T, marker="o", markersize=3.5, label=label, **style)
            share = np.array(reliability.pixels) / max(sum(reliability.pixels), 1)
            shares.stairs(share, np.linspace(0, 1, BINS + 1), **style)
        curves.set(xlim=(0, 1), ylim=(0, 1), ylabel="Share of landslide")
        figure.legend(loc="outside upper left", frameon=False, handlelength=2.4)
        shares.set(yscale="log", ylim=(1e-4, 1), xlabel="Probability", ylabel="Share of pixels")
        for axes in (curves, shares):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#e4e7e2", linewidth=0.6)
            axes.set_axisbelow(True)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
    return data_uri(stream.getvalue(), "image/png")
