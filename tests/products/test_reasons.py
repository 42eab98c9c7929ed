"""Tests of the reasons for unmapped pixels, from sources to GeoPackage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
from shapely.geometry import box

from source_files import CORNER, UTM, write_raster
from talud.bands import Group
from talud.data.stack import build_stack_for_model
from talud.engine.runtime import Model
from talud.mapping.options import MapOptions
from talud.params import Area
from talud.products.prediction import Prediction, predict

LEFT, TOP = CORNER
BANDS = ("red", "green", "blue", "slope", "vv_pre", "vv_post")
SIDE = 12.5


@pytest.fixture(scope="module")
def model(exporter) -> Model:
    """Return a model of SAR amplitude, so that the stack needs no conversion."""
    path = exporter(2, BANDS, stack={"resolution": "12.5", "sar_unit": "amplitude"})
    loaded = Model.load(path)
    bands = tuple(
        band.model_copy(update={"unit": "amplitude"}) if band.group is Group.SAR else band
        for band in loaded.contract.input.bands
    )
    return replace(loaded, contract=loaded.contract.replace(bands=bands))


@pytest.fixture(scope="module")
def mapped(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prediction]:
    """Map 40 × 60 pixels with clouds, layover and missing columns.

    Cloud and layover cover 10 × 10 pixels each and overlap in 5 × 5. Three columns have no image.
    """
    folder = tmp_path_factory.mktemp("sources")
    random = np.random.default_rng(4)
    image = random.integers(1, 250, (3, 40, 60)).astype(np.uint8)
    image[:, :, 57:] = 0
    files = {
        "optical": write_raster(folder / "optical.tif", image, SIDE, nodata=0),
        "dtm": write_raster(folder / "dtm.tif", random.uniform(900, 950, (40, 60)).astype(np.float32), SIDE),
    }
    for source in ("sar_pre", "sar_post"):
        amplitude = random.uniform(1, 250, (40, 60)).astype(np.float32)
        files[source] = write_raster(folder / f"{source}.tif", amplitude, SIDE, units=("amplitude",))
    for source, (top, left) in {"cloud": (10, 10), "sar_mask": (15, 15)}.items():
        inner = SIDE / 10  # all touched pixels are masked
        hidden = box(
            LEFT + left * SIDE + inner, TOP - (top + 10) * SIDE + inner,
            LEFT + (left + 10) * SIDE - inner, TOP - top * SIDE - inner,
        )  # fmt: skip
        files[source] = folder / f"{source}.gpkg"
        geopandas.GeoDataFrame(geometry=[hidden], crs=UTM).to_file(files[source])
    build_stack_for_model(model.contract, Area.create(role="transfer", folder="."), files, folder / "stack.tif")
    return folder / "out", predict(model, folder / "stack.tif", folder / "out", MapOptions(tile=16))


def test_cloud_and_layover_are_reasons_of_polygons(mapped: tuple[Path, Prediction]) -> None:
    out, outcome = mapped
    rest = pyogrio.read_dataframe(out / "landslides.gpkg", layer="not_mapped")
    pixels = (rest.groupby("reason")["area_m2"].sum() / SIDE**2).to_dict()
    rim = pixels.pop("no data: slope", 0) + pixels.pop("no data: red, green, blue, slope", 0)
    assert pixels == {
        "cloud": 75,
        "radar layover or shadow": 75,
        "cloud and radar layover or shadow": 25,
        "no data: red, green, blue": 2 * 38,
    }
    assert rim == 2 * 60 + 2 * 38  # a slope needs neighbouring pixels
    assert rest["reason"].value_counts()["cloud"] == 1  # one polygon across all tiles
    assert sum(outcome.not_mapped.values()) == sum(pixels.values()) + rim
    assert outcome.not_mapped["cloud"] == 75


def test_summary_lists_the_reasons(mapped: tuple[Path, Prediction]) -> None:
    text = (mapped[0] / "summary.html").read_text(encoding="utf-8")
    for why in ("cloud", "radar layover or shadow", "cloud and radar layover or shadow", "no data: red, green, blue"):
        assert f'<th scope="row">{why}</th>' in text
