"""Tests of stretched values, hatching and data URIs."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from PIL import Image

from talud import imaging
from talud.imaging import Caption, LegendEntry


def test_percentile_limits_ignore_invalid_values() -> None:
    values = np.concatenate([np.arange(101, dtype=np.float32), np.array([np.nan, np.inf], np.float32)])
    assert imaging.percentile_limits(values) == (2, 98)
    assert imaging.rescale(values[:101], (2, 98))[[0, 2, 50, 98, 100]].tolist() == pytest.approx([0, 0, 0.5, 1, 1])


@pytest.mark.parametrize("value", [np.nan, 7.0])
def test_constant_or_invalid_band_can_be_stretched(value: float) -> None:
    grey = 255 if np.isnan(value) else 0
    assert (imaging.stretch_contrast(np.full((3, 4), value, np.float32)) == grey).all()


def test_stripes_are_diagonal() -> None:
    stripes = imaging.diagonal_stripes((8, 8), 8, 2)
    assert stripes.mean() == 0.25
    assert stripes[0].tolist() == [True, True, *[False] * 6]
    assert (stripes[1:, :-1] == stripes[:-1, 1:]).all()


def test_figure_contains_picture_and_legend() -> None:
    picture = np.full((40, 900, 3), (10, 200, 30), np.uint8)
    legend = [LegendEntry("a landslide", (230, 30, 60)), LegendEntry("not mapped", None)]
    page = np.asarray(imaging.compose_figure(picture, 10.0, Caption("Título", ["one"], ""), legend, ["North is up."]))
    assert (page == (10, 200, 30)).all(axis=-1).sum() == 40 * 900
    assert (page == (230, 30, 60)).all(axis=-1).sum() > 500


def test_data_uri_contains_the_content() -> None:
    uri = imaging.data_uri(b"\x89PNG", "image/png")
    assert uri.startswith("data:image/png;base64,")
    assert base64.b64decode(uri.partition(",")[2]) == b"\x89PNG"


def test_text_is_drawn_without_accents() -> None:
    image = Image.new("RGB", (80, 30), "white")
    other = image.copy()
    from PIL import ImageDraw

    imaging.draw_text(ImageDraw.Draw(image), (0, 0), "Peñón", 16, imaging.TEXT_COLOUR)
    imaging.draw_text(ImageDraw.Draw(other), (0, 0), "Penon", 16, imaging.TEXT_COLOUR)
    assert image.tobytes() == other.tobytes()
