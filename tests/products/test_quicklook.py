"""Tests of the quicklook of a map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stack_files import grid_of, noise, write_stack
from talud import imaging
from talud.engine.runtime import Model
from talud.mapping.reader import open_stack
from talud.products import quicklook
from talud.products.polygons import Landslides, NotMapped

ZOOM, TOP = imaging.MAX_ZOOM, imaging.MARGIN_PIXELS + 40 + 24 + 12
CAPTION = quicklook.MapCaption("Landslides in Peñón", ("Model",), "", "3 mapped", "5%", "")


def rectangle(left: int, top: int, right: int, bottom: int) -> shapely.Polygon:
    """Return a rectangle from columns and rows of the test grid."""
    transform = grid_of(1, 1).transform
    return shapely.box(*(transform * (left, bottom)), *(transform * (right, top)))


def draw_quicklook(
    folder: Path, model: Model, values: np.ndarray, caption: quicklook.MapCaption = CAPTION
) -> np.ndarray:
    """Return the image of a map as an array.

    Rows and columns 10 to 20 are a landslide, and 30 to 40 are not mapped.
    """
    landslides = Landslides(np.array([rectangle(10, 10, 20, 20)]), np.ones(1), np.ones(1))
    not_mapped = NotMapped(np.array([rectangle(30, 30, 40, 40)]), np.ones(1), np.array(["optical invalid"]))
    stack = write_stack(folder / "s.tif", values, model.contract.input.band_names)
    with open_stack(stack, model.contract) as reader:
        quicklook.write(folder / "q.png", quicklook.render(reader, landslides, not_mapped), caption)
    return np.asarray(Image.open(folder / "q.png")).astype(int)


def map_part(page: np.ndarray, height: int, width: int) -> np.ndarray:
    left = (page.shape[1] - width * ZOOM) // 2
    return page[TOP : TOP + height * ZOOM, left : left + width * ZOOM]


def test_quicklook_shows_landslides_hatching_and_image(model: Model, tmp_path: Path) -> None:
    values = np.full((3, 50, 60), 100, np.float32)
    values[:, :, :3], values[:, :, 3:6] = 0, 200  # limits of the stretch
    values[1, :, 6:] = 180  # green
    page = map_part(draw_quicklook(tmp_path, model, values), 50, 60)
    red, green, blue = (page[12 * ZOOM : 18 * ZOOM, 12 * ZOOM : 18 * ZOOM, band].mean() for band in range(3))
    outline = page[15 * ZOOM, 10 * ZOOM]
    elsewhere = page[45 * ZOOM, 50 * ZOOM]
    assert (outline == quicklook.LANDSLIDE_COLOUR).all()
    assert red > elsewhere[0] + 20
    assert elsewhere[1] == max(elsewhere) > green
    hidden = page[31 * ZOOM : 39 * ZOOM, 31 * ZOOM : 39 * ZOOM].reshape(-1, 3)
    lines = (hidden == imaging.HATCH_COLOUR).all(axis=1).mean()
    assert lines == pytest.approx(0.25, abs=0.02)
    assert len(np.unique(hidden, axis=0)) == 2
    assert blue < 255


def test_background_is_the_slope_without_an_optical_image(exporter, tmp_path: Path) -> None:
    model = Model.load(exporter(2, ("curvature", "slope")))
    values = np.zeros((2, 50, 60), np.float32)
    values[1] = np.linspace(0, 60, 60)
    page = map_part(draw_quicklook(tmp_path, model, values), 50, 60)
    row = page[2 * ZOOM, ::ZOOM]
    assert (row == row[:, :1]).all()  # grey
    assert (np.diff(row[:, 0]) <= 0).all()  # steep is dark
    assert row[0, 0] > row[-1, 0]


def test_warning_is_at_the_top(model: Model, tmp_path: Path) -> None:
    corner = np.s_[: TOP - 4, -300:]
    assert (draw_quicklook(tmp_path, model, noise(50, 60))[corner] == 255).all()
    warned = draw_quicklook(tmp_path, model, noise(50, 60), replace(CAPTION, warning="SYNTHETIC DATA"))
    assert (warned[corner] != 255).any()


def test_accents_are_removed_from_the_title(model: Model, tmp_path: Path) -> None:
    """Pillow's font has no letters with accents."""
    plain = draw_quicklook(tmp_path, model, noise(50, 60), replace(CAPTION, title="Landslides in Penon"))
    assert np.array_equal(draw_quicklook(tmp_path, model, noise(50, 60)), plain)


@given(st.floats(1e-3, 1e7))
def test_scale_bar_has_a_round_length(longest: float) -> None:
    length = imaging.round_length(longest)
    assert longest * 0.399 < length <= longest
    assert f"{length:.0e}"[0] in "125"
