"""Tests of paths with characters that have a special meaning to libraries."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.features import rasterize

from command_line import Run
from source_files import CORNER, UTM, write_raster
from talud.registry import Store
from talud.vector import plain_path

NAMES = [
    "a!b", "a%20b", "a?b=1", "a#b", "a;b", "a&b", "a'b", 'a"b', "a\nb", "é 😀", "file:", "a.zip!x", "-a", "$HOME",
    "[x]*", "a.", "~", "a\\b",
]  # fmt: skip
LEFT, TOP = CORNER
CLOUD = shapely.box(LEFT + 50, TOP - 200, LEFT + 150, TOP - 50)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_map_works_with_any_file_and_folder_name(name: str, talud: Run, tmp_path: Path, tiny_model: Path) -> None:
    values = np.random.default_rng(0).integers(30, 220, (3, 40, 50)).astype(np.uint8)
    image = write_raster(tmp_path / "in" / name / f"{name}.tif", values)
    geopandas.GeoDataFrame(geometry=[CLOUD], crs=UTM).to_file(tmp_path / "cloud.gpkg")
    cloud = (tmp_path / "cloud.gpkg").rename(image.with_suffix(".gpkg"))
    out = tmp_path / "out" / name
    code, _, err = talud("map", "--model", tiny_model, "--optical", image, "--cloud", cloud, "--out", out)
    assert (code, err) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {name}
    with rasterio.open(out / "landslides.tif") as dataset:
        hidden = rasterize([CLOUD], dataset.shape, transform=dataset.transform).astype(bool)
        assert np.array_equal(dataset.read(1) == 255, hidden)
    with closing(sqlite3.connect(out / "landslides.gpkg")) as database:
        layers = {layer for (layer,) in database.execute("SELECT table_name FROM gpkg_contents")}
    assert {"landslides", "not_mapped"} <= layers
    code, output, err = talud("lineage", out / "landslides.gpkg")
    assert (code, err) == (0, "")
    assert "tiny" in output or "3band" in output


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_registry_works_with_any_project_folder_name(name: str, tmp_path: Path) -> None:
    root = tmp_path / name
    root.mkdir()
    tags = {"band_set": "rgb"}
    store = Store.open(root, create=True)
    with store.runs.study("study", tags) as parent, store.runs.trial(parent, "one", {}, tags) as trial:
        trial.log_scores({"f1": 0.5, "precision": 0.5, "recall": 0.5, "iou": 0.3})
    client = store.client
    (tmp_path / "note.txt").write_text("hello")
    client.log_artifact(trial.run_id, str(tmp_path / "note.txt"))
    assert [path.read_text() for path in (root / "mlartifacts").rglob("note.txt")] == ["hello"]
    assert client.get_run(parent).data.metrics["f1"] == 0.5
    assert {path.name for path in tmp_path.iterdir()} == {name, "note.txt"}
    assert {path.name for path in root.iterdir()} == {"mlflow.db", "mlartifacts", "checkpoints"}


@pytest.mark.parametrize("name", ["a!b", "a;b", "a\nb", "a?"])
def test_shapefile_with_any_name_is_read_with_its_side_files(name: str, tmp_path: Path) -> None:
    geopandas.GeoDataFrame({"kind": ["slide"]}, geometry=[CLOUD], crs=UTM).to_file(tmp_path / "x.shp")
    for part in list(tmp_path.iterdir()):
        part.rename(part.with_name(f"{name}{part.suffix}"))
    frame = pyogrio.read_dataframe(plain_path(tmp_path / f"{name}.shp"))
    assert (frame.crs, list(frame["kind"])) == (UTM, ["slide"])
    assert frame.geometry.iloc[0].equals(CLOUD)


def test_changed_file_is_reread_through_its_link(tmp_path: Path) -> None:
    path = tmp_path / "a!b.geojson"
    for count in (1, 2):
        path.unlink(missing_ok=True)
        geopandas.GeoDataFrame(geometry=[CLOUD] * count, crs=UTM).to_file(tmp_path / "x.geojson")
        (tmp_path / "x.geojson").rename(path)
        assert len(pyogrio.read_dataframe(plain_path(path))) == count
