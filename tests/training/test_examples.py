"""Tests of the picture of example predictions."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from talud.confusion_map import PIXEL_CLASS_COLOURS, PixelClass
from talud.data.patches import Patches
from talud.training import examples
from talud.training.examples import Examples, example_panel, select_patches

SIDE = 19  # a tenth of a pane of the picture


def patches(*landslide_pixels: int) -> Patches:
    """Return RGB patches with given numbers of landslide pixels."""
    random = np.random.default_rng(0)
    mask = np.zeros((len(landslide_pixels), SIDE, SIDE), np.uint8)
    for index, count in enumerate(landslide_pixels):
        mask[index].flat[:count] = 1
    return Patches(random.uniform(size=(*mask.shape, 3)).astype(np.float32), mask)


def pane(picture: bytes, row: int, column: int) -> np.ndarray:
    """Return one pane of a picture at the patch's own size, (SIDE, SIDE, 3)."""
    left = 10 + column * 200
    top = 84 + row * 200
    return np.asarray(Image.open(io.BytesIO(picture)))[top + 5 : top + 190 : 10, left + 5 : left + 190 : 10]


def test_select_patches_spans_landslide_pixel_counts() -> None:
    counts = [0, 5, 300, 0, 20, 100, 50, 7, 200, 1, 0]
    shown = [counts[index] for index in select_patches(patches(*counts), 4)]
    assert (shown[0], shown[-1]) == (300, 1)
    assert shown == sorted(shown, reverse=True)
    assert set(shown[1:-1]) < {100, 50, 20, 7}
    assert sorted(counts[index] for index in select_patches(patches(*counts), 99)) == sorted(filter(None, counts))
    assert len(select_patches(patches(0, 3))) == 1


def test_example_panel_shows_each_patch_in_its_pane() -> None:
    found = patches(40, 8)
    probability = np.where(found.mask == 1, 0.9, 0.1).astype(np.float32)
    probability[0, 0, 0] = 0.2  # a missed landslide
    probability[0, -1, -1] = 0.8  # a false alarm
    probability[1, 5, 5], found.stack[1, 5, 5] = np.nan, np.nan
    picture = example_panel(Examples(("red", "green", "blue"), found, probability, 0.5), "any", "Synthetic data")
    outcome = pane(picture, 0, 3)
    colours = {kind: PIXEL_CLASS_COLOURS[kind][:3] for kind in PixelClass}
    assert tuple(outcome[0, 0]) == colours[PixelClass.FALSE_NEGATIVE]
    assert tuple(outcome[-1, -1]) == colours[PixelClass.FALSE_POSITIVE]
    assert (outcome == colours[PixelClass.TRUE_POSITIVE]).all(axis=-1).sum() == 39
    truth, chance, seen = (pane(picture, 0, column) for column in (1, 2, 0))
    dark = truth.sum(axis=-1) < 300
    assert (dark == (found.mask[0] == 1)).all()
    assert chance[0, 1].sum() < chance[0, 0].sum()  # higher probabilities are darker
    assert np.corrcoef(seen[..., 0].ravel(), found.stack[0, ..., 0].ravel())[0, 1] > 0.9
    nothing = tuple(examples.CLASS_COLOURS[255])
    assert tuple(pane(picture, 1, 3)[5, 5]) == tuple(pane(picture, 1, 2)[5, 5]) == nothing


def test_example_panel_without_rgb_shows_slope_or_first_band() -> None:
    found = patches(40)
    probability = np.zeros(found.mask.shape, np.float32)
    slope = pane(example_panel(Examples(("vv", "slope", "x"), found, probability, 0.5), "any"), 0, 0)
    assert np.corrcoef(slope[..., 0].ravel(), found.stack[0, ..., 1].ravel())[0, 1] < -0.9  # steep is dark
    first = pane(example_panel(Examples(("vv", "y", "x"), found, probability, 0.5), "any"), 0, 0)
    assert np.corrcoef(first[..., 0].ravel(), found.stack[0, ..., 0].ravel())[0, 1] > 0.9
