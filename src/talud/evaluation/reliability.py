"""Whether probabilities mean what they say: of the pixels of a probability of 0.3, three of ten should be landslide.

The reliability diagram (A. Niculescu-Mizil and R. Caruana, Predicting Good Probabilities with Supervised Learning,
ICML 2005) and the expected calibration error (`talud.metrics.Bins`), both from counts by bin, which are added up window
by window.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from talud.evaluation.results import Reliability
from talud.imaging import data_uri
from talud.metrics import BINS

# Okabe and Ito's palette (2008): the first for the test blocks, the others for areas, over again.
_HOME, *_AWAY = "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#e69f00"


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
