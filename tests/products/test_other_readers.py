"""Tests of a map with the command-line tools of GDAL and OGR.

The tools use another GDAL than rasterio.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio

from stack_files import noise, write_stack
from talud.engine.runtime import Model
from talud.mapping.options import MapOptions
from talud.products.prediction import Prediction, predict

# Without this option the tools write statistics next to the map.
NO_STATISTICS = ["--config", "GDAL_PAM_ENABLED", "NO"]


def run_tool(tool: str, *arguments: object) -> str:
    """Run a tool without errors and warnings, and return its output."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed (gdal-bin on Debian)")
    result = subprocess.run([tool, *NO_STATISTICS, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture(scope="module")
def mapped(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prediction]:
    folder = tmp_path_factory.mktemp("mapped")
    values = noise(520, 300)
    values[0, :50, :100] = np.nan
    stack = write_stack(folder / "stack.tif", values)
    return folder / "map", predict(model, stack, folder / "map", MapOptions(threshold=0.48, geojson=True))


def test_gdalinfo_reads_the_probability(mapped: tuple[Path, Prediction]) -> None:
    out, _ = mapped
    info = json.loads(run_tool("gdalinfo", "-json", "-mm", out / "probability.tif"))
    (band,) = info["bands"]
    assert (info["size"], info["geoTransform"]) == ([300, 520], [400_000, 12.5, 0, 650_000, 0, -12.5])
    assert 'ID["EPSG",32618]' in info["coordinateSystem"]["wkt"]
    assert (band["type"], band["noDataValue"], band["description"]) == ("Float32", "NaN", "probability")
    assert [overview["size"] for overview in band["overviews"]] == [[150, 260]]
    with rasterio.open(out / "probability.tif") as dataset:
        probability = dataset.read(1)
    lowest, highest = float(np.nanmin(probability)), float(np.nanmax(probability))
    assert (band["computedMin"], band["computedMax"]) == pytest.approx((lowest, highest), abs=1e-3)


def test_gdalinfo_reads_the_classes(mapped: tuple[Path, Prediction]) -> None:
    out, outcome = mapped
    (band,) = json.loads(run_tool("gdalinfo", "-json", "-hist", out / "landslides.tif"))["bands"]
    assert (band["type"], band["noDataValue"], band["colorInterpretation"]) == ("Byte", 255, "Palette")
    entries = band["colorTable"]["entries"]
    transparent = [150, 150, 150, 0]  # GDAL makes the colour of nodata transparent
    assert [entries[value] for value in (0, 1, 255)] == [[244, 242, 236, 255], [214, 40, 57, 255], transparent]
    landslides = round(outcome.landslide_area_m2 / 12.5**2)
    mapped_pixels = outcome.pixels - sum(outcome.not_mapped.values())
    assert landslides > 0
    assert band["histogram"]["buckets"][:2] == [mapped_pixels - landslides, landslides]


@pytest.mark.parametrize(("layer", "columns"), [("landslides", 7), ("not_mapped", 2)])
def test_ogrinfo_reads_the_layers(mapped: tuple[Path, Prediction], layer: str, columns: int) -> None:
    out, outcome = mapped
    info = run_tool("ogrinfo", "-ro", "-so", out / "landslides.gpkg", layer)
    count = pyogrio.read_info(out / "landslides.gpkg", layer=layer)["features"]
    assert count == (outcome.landslides if layer == "landslides" else 1)
    assert "Geometry: Multi Polygon\n" in info
    assert f"Feature Count: {count}\n" in info
    assert 'ID["EPSG",32618]' in info
    assert len(re.findall(r"^\w+: (?:Integer64|Integer|Real|String) \(", info, re.MULTILINE)) == columns


def test_ogrinfo_finds_valid_outlines_of_the_stated_area(
    mapped: tuple[Path, Prediction],
) -> None:
    out, outcome = mapped
    query = "SELECT COUNT(*) AS n, SUM(ST_IsValid(geom)) AS valid, SUM(ABS(ST_Area(geom) - area_m2)) AS off FROM {}"
    for layer, count in (("landslides", outcome.landslides), ("not_mapped", 1)):
        found = run_tool(
            "ogrinfo", "-ro", "-q", out / "landslides.gpkg", "-dialect", "SQLite", "-sql", query.format(layer)
        )
        numbers = {name: float(value) for name, value in re.findall(r"(\w+) \(\w+\) = (\S+)", found)}
        assert (numbers["n"], numbers["valid"]) == (count, count)
        assert numbers["off"] == pytest.approx(0, abs=1e-6 * count)


def test_tools_read_styles_geojson_and_quicklook(mapped: tuple[Path, Prediction]) -> None:
    out, outcome = mapped
    assert "Feature Count: 2\n" in run_tool("ogrinfo", "-ro", "-so", out / "landslides.gpkg", "layer_styles")
    geojson = run_tool("ogrinfo", "-ro", "-so", out / "landslides.geojson", "landslides")
    assert f"Feature Count: {outcome.landslides}\n" in geojson
    assert 'ID["EPSG",4326]' in geojson
    picture = json.loads(run_tool("gdalinfo", "-json", out / "quicklook.png"))
    assert (picture["driverShortName"], len(picture["bands"])) == ("PNG", 3)


def test_reading_does_not_change_the_folder(mapped: tuple[Path, Prediction]) -> None:
    out, _ = mapped
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in ("probability.tif", "landslides.tif", "quicklook.png"):
        run_tool("gdalinfo", out / name)
    run_tool("ogrinfo", "-ro", "-al", "-so", out / "landslides.gpkg")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
