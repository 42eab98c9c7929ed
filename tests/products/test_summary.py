"""Tests of the summary page of a map."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from stack_files import noise, write_stack
from talud.engine.runtime import Model, RegistryVersion
from talud.mapping.options import MapOptions
from talud.measurement.samples import band_histogram
from talud.products.prediction import Prediction, predict

TAGS = {"TALUD_AREA": "peñón_<b>alto</b>", "TALUD_EVENT": "2015-05-18", "TALUD_SYNTHETIC": "yes"}


@pytest.fixture(scope="module")
def model_with_histograms(model: Model) -> Model:
    """Return a model with histograms of uniform values from 0 to 250.

    The values of blue only reach 50.
    """
    contract = model.contract
    bands = []
    for band in contract.input.bands:
        edges, shares = band_histogram(np.linspace(0, 50 if band.name == "blue" else 250, 5001))
        bands.append(band.model_copy(update={"edges": edges, "shares": shares, "maximum": edges[-1]}))
    return replace(model, contract=contract.replace(bands=tuple(bands)))


def page(model: Model, folder: Path, tags: dict[str, str] | None = None, **options: float) -> tuple[str, Prediction]:
    folder.mkdir(exist_ok=True)
    values = noise(60, 80)
    values[0, :12] = np.nan
    outcome = predict(
        model,
        write_stack(folder / "s.tif", values, tags=TAGS if tags is None else tags),
        folder / "out",
        MapOptions(**options),
    )
    return (folder / "out" / "summary.html").read_text(encoding="utf-8"), outcome


class PageParser(HTMLParser):
    """Parser of a page for its text, addresses and unclosed tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}]
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


@pytest.mark.slow
def test_summary_agrees_with_the_record(model_with_histograms: Model, tmp_path: Path) -> None:
    html, outcome = page(model_with_histograms, tmp_path)
    read = PageParser(html)
    assert read.open == []
    for said in (
        "Landslides in peñón <b>alto</b> Event 2015-05-18",  # names are escaped
        "SYNTHETIC DATA.",
        f"Landslides {outcome.landslides:,} Landslide area {outcome.landslide_area_m2 / 1e4:,.1f} ha",
        "Raster area 0.8 km² Not mapped 20.0 %",
        "no data: red 0.15 km² 20.0 %",
        "Far from the training areas",
        f"red {100 * outcome.distances[0].overlap:.1f} % 0.0 %",
        "Model 3band, from a file ( talud lineage shows its registered name and version). "
        "Pixels with a probability of at least 0.5 are landslides.",
        model_with_histograms.contract.origin.weights,
        "s.tif",
    ):
        assert said in read.text
    bars = [float(width) for width in re.findall(r'class="bar"><i style="width: ([\d.]+)%', html)]
    assert bars == pytest.approx([100 * one.overlap for one in outcome.distances], abs=0.051)
    assert bars[2] < 30 < 90 < bars[1]


@pytest.mark.slow
def test_summary_states_options_that_are_not_defaults(model: Model, tmp_path: Path) -> None:
    """Map with a small halo, eight passes and a chosen model."""
    chosen = replace(
        model, registered_as=RegistryVersion("unet", "3", "unet, version 3: the most bands (3) that the stack supports")
    )
    html, _ = page(chosen, tmp_path, tile=32, halo=8, tta=True)
    said = PageParser(html).text
    assert "Halo 8 instead of 28: probabilities differ by an amount that was not measured for this model" in said
    assert "Probability mean over eight rotated and mirrored passes" in said
    assert "Chosen unet, version 3: the most bands (3) that the stack supports" in said
    with rasterio.open(tmp_path / "out/landslides.tif") as classes:
        assert (classes.tags()["TALUD_HALO"], classes.tags()["TALUD_TTA"]) == ("8", "yes")
    plain = PageParser(page(model, tmp_path / "plain", tile=32)[0]).text
    assert not any(word in plain for word in ("instead of", "mirrored", "Chosen"))


def test_summary_is_self_contained(model_with_histograms: Model, tmp_path: Path) -> None:
    html, _ = page(model_with_histograms, tmp_path)
    [icon, picture] = PageParser(html).addresses
    assert icon == "data:,"
    assert "://" not in html.replace(picture, "")
    assert not re.search(r"url\(|@import|<script", html)
    kind, _, content = picture.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (80 * 8, 60 * 8)
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    red = np.abs(colours - (230, 30, 60)).max(axis=1) < 25
    assert red.any()


def test_equal_maps_give_equal_bytes(model_with_histograms: Model, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = (page(model_with_histograms, tmp_path / name)[0] for name in ("first", "second"))
    assert first == second


def test_summary_omits_unknown_facts(model: Model, tmp_path: Path) -> None:
    html, _ = page(model, tmp_path, tags={}, threshold=0.999999)
    text = PageParser(html).text
    assert "SYNTHETIC" not in text
    assert "Landslides in s Dates unknown" in text
    assert "The model holds no histograms" in text
    assert "Overlap" not in text
    assert "Largest landslide" not in text
    assert "Landslides 0 Landslide area 0.0 ha" in text


@pytest.mark.slow
def test_map_without_valid_pixels_has_a_summary(model: Model, tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "s.tif", np.full((3, 20, 30), np.nan, np.float32))
    predict(model, stack, tmp_path / "out")
    text = PageParser((tmp_path / "out/summary.html").read_text(encoding="utf-8")).text
    assert "no data: red, green, blue 0.09 km² 100.0 %" in text
    assert "No valid values" in text
