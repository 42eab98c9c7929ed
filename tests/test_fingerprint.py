"""Tests of the fingerprint of a source.

Every part of the source counts, and files that a GIS writes beside it do not.
"""

from __future__ import annotations

import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.errors import RasterioDeprecationWarning

from range_server import run_range_server
from source_files import UTM, write_raster
from talud.errors import SourceError
from talud.files import md5
from talud.source_files import fingerprint

Changeable = tuple[Path | str, Callable[[], object]]  # a source, and what changes a part of it
EMPTY = "d41d8cd98f00b204e9800998ecf8427e"  # the MD5 of nothing


def polygons(path: Path, count: int = 2) -> Path:
    frame = geopandas.GeoDataFrame(
        {"name": [f"slide {number}" for number in range(count)]},
        geometry=[shapely.box(number, 0, number + 1, 1) for number in range(count)],
        crs=UTM,
    )
    pyogrio.write_dataframe(frame, path)
    return path


def raster(path: Path, value: int = 7) -> Path:
    return write_raster(path, np.full((3, 20, 30), value, np.uint8))


def insert(path: Path, feature: int) -> sqlite3.Connection:
    """Add a copy of a feature as QGIS does, in write-ahead mode, and stay connected."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f'DROP TRIGGER "{name}"')  # they call functions that GDAL alone has
    connection.execute(f"INSERT INTO {path.stem} (geom, name) SELECT geom, 'new' FROM {path.stem} WHERE fid={feature}")
    connection.commit()
    return connection


def test_single_file_has_md5_of_its_bytes(tmp_path: Path) -> None:
    path = raster(tmp_path / "image.tif")
    assert fingerprint(path) == md5(path)
    assert fingerprint(polygons(tmp_path / "clouds.geojson")) == md5(tmp_path / "clouds.geojson")


@pytest.mark.parametrize("part", [".SHP", ".DBF", ".PRJ"])
def test_fingerprint_depends_on_parts_of_an_uppercase_shapefile(tmp_path: Path, part: str) -> None:
    polygons(tmp_path / "clouds.shp")
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.upper()))
    before = fingerprint(tmp_path / "CLOUDS.SHP")
    assert before != EMPTY
    path = tmp_path / f"CLOUDS{part}"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert fingerprint(tmp_path / "CLOUDS.SHP") != before


def test_fingerprint_depends_on_a_mixed_case_table(tmp_path: Path) -> None:
    polygons(tmp_path / "clouds.shp")
    (tmp_path / "clouds.dbf").rename(tmp_path / "clouds.DBF")
    before = fingerprint(tmp_path / "clouds.shp")
    path = tmp_path / "clouds.DBF"
    path.write_bytes(path.read_bytes().replace(b"slide 1", b"slide 9"))
    assert fingerprint(tmp_path / "clouds.shp") != before


def of_virtual_raster(folder: Path) -> Changeable:
    raster(folder / "tile.tif")
    with rasterio.open(folder / "tile.tif") as dataset:
        rasterio.shutil.copy(dataset, folder / "inner.vrt", driver="VRT")
    with rasterio.open(folder / "inner.vrt") as dataset:
        rasterio.shutil.copy(dataset, folder / "outer.vrt", driver="VRT")
    return folder / "outer.vrt", lambda: raster(folder / "tile.tif", 8)


def of_raster_in_archive(folder: Path) -> Changeable:
    def pack(value: int) -> None:
        with zipfile.ZipFile(folder / "scene.zip", "w") as archive:
            archive.write(raster(folder / "image.tif", value), "inner/image.tif")

    pack(7)
    return f"/vsizip/{folder}/scene.zip/inner/image.tif", lambda: pack(8)


def of_polygons_in_archive(folder: Path) -> Changeable:
    def pack(count: int) -> None:
        polygons(folder / "clouds.shp", count)
        with zipfile.ZipFile(folder / "clouds.zip", "w") as archive:
            for path in folder.glob("clouds.[!z]*"):
                archive.write(path, path.name)

    pack(2)
    return f"/vsizip/{folder}/clouds.zip/clouds.shp", lambda: pack(3)


def of_folder(folder: Path) -> Changeable:
    pyogrio.write_dataframe(
        pyogrio.read_dataframe(polygons(folder / "a.geojson")), folder / "clouds.gdb", driver="OpenFileGDB"
    )
    largest = max((folder / "clouds.gdb").iterdir(), key=lambda path: path.stat().st_size)
    return folder / "clouds.gdb", lambda: largest.write_bytes(largest.read_bytes()[:-1] + b"?")


def of_mask_beside(folder: Path) -> Changeable:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(raster(folder / "image.tif"), "r+") as dataset:
        dataset.write_mask(np.ones(dataset.shape, bool))
    path = folder / "image.tif.msk"
    return folder / "image.tif", lambda: path.write_bytes(path.read_bytes()[:-1] + b"?")


KINDS = [of_virtual_raster, of_raster_in_archive, of_polygons_in_archive, of_folder, of_mask_beside]


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_depends_on_every_part(tmp_path: Path, kind: Callable[[Path], Changeable]) -> None:
    source, change = kind(tmp_path)
    before = fingerprint(source)
    assert before == fingerprint(source) != EMPTY
    change()
    assert fingerprint(source) not in (before, EMPTY)


@pytest.mark.slow
def test_network_raster_is_identified_by_its_pixels(tmp_path: Path) -> None:
    known = []
    for name, value in (("one", 7), ("same", 7), ("other", 8)):
        with run_range_server(raster(tmp_path / f"{name}.tif", value), tmp_path) as server:
            known.append(fingerprint(f"/vsicurl/{server.address}"))
    one, same, other = known
    assert one == same != other
    assert EMPTY not in known


@pytest.mark.parametrize("name", ["missing.tif", "missing.shp", "empty_folder", "/vsizip/missing.zip/image.tif"])
def test_source_without_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty_folder").mkdir()
    with pytest.raises(SourceError, match=name.rsplit("/", maxsplit=1)[-1]):
        fingerprint(Path(name))


def test_fingerprint_ignores_statistics_and_overviews(tmp_path: Path) -> None:
    path = raster(tmp_path / "image.tif")
    before = fingerprint(path)
    with rasterio.open(path) as dataset, pytest.warns(RasterioDeprecationWarning):
        dataset.statistics(1, approx=False)
    assert (tmp_path / "image.tif.aux.xml").exists()
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2])
    assert (tmp_path / "image.tif.ovr").exists()
    assert fingerprint(path) == before


AUXILIARY = {
    "<PAMRasterBand band='1'><NoDataValue>7</NoDataValue></PAMRasterBand>": True,
    "<GeoTransform>1, 2, 0, 3, 0, -2</GeoTransform>": True,
    "<PAMRasterBand band='1'><Scale>0.5</Scale></PAMRasterBand>": True,
    "<PAMRasterBand band='1'><UnitType>dB</UnitType></PAMRasterBand>": True,
    "<PAMRasterBand band='1'><Description>nir</Description></PAMRasterBand>": True,
    "<PAMRasterBand band='1'><Metadata><MDI key='STATISTICS_MEAN'>7</MDI></Metadata></PAMRasterBand>": False,
    "<PAMRasterBand band='1'><Metadata><MDI key='LAYER_TYPE'>athematic</MDI></Metadata></PAMRasterBand>": False,
    "<PAMRasterBand band='1'><Histograms><HistItem><HistMin>0</HistMin><HistMax>9</HistMax><BucketCount>1"
    "</BucketCount><IncludeOutOfRange>0</IncludeOutOfRange><Approximate>1</Approximate><HistCounts>600</HistCounts>"
    "</HistItem></Histograms></PAMRasterBand>": False,
}  # what a GIS may write → whether talud reads the raster otherwise


@pytest.mark.parametrize("content", AUXILIARY)
def test_fingerprint_depends_on_effective_auxiliary_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "image.tif"
    raster(path)
    before = fingerprint(path)
    (tmp_path / "image.tif.aux.xml").write_text(f"<PAMDataset>{content}</PAMDataset>")
    assert (fingerprint(path) != before) == AUXILIARY[content]


def test_fingerprint_depends_on_pending_edits_not_on_a_merge(tmp_path: Path) -> None:
    path = polygons(tmp_path / "inventory.gpkg")
    before = fingerprint(path)
    with closing(insert(path, 1)) as connection:
        main = md5(path)
        pending = fingerprint(path)
        assert md5(path) == main
        assert pending != before
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        assert md5(path) != main
        assert fingerprint(path) == pending
        connection.execute("PRAGMA journal_mode=DELETE")
    assert fingerprint(path) == pending
    with closing(insert(path, 2)):
        assert fingerprint(path) not in (before, pending)


def test_fingerprint_ignores_opening_a_geopackage(tmp_path: Path) -> None:
    path = polygons(tmp_path / "inventory.gpkg")
    before, bytes_before = fingerprint(path), path.read_bytes()
    for mode in ("WAL", "DELETE"):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA journal_mode={mode}")
    assert path.read_bytes() != bytes_before
    assert fingerprint(path) == before
