"""Tests of common vector formats for inventories, boundaries and clouds.

All give the same mask, or one line of error.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely

from command_line import Run, runner
from source_files import CORNER, UTM, write_project, write_raster
from talud.data import sources
from talud.errors import SourceError

LEFT, TOP = CORNER
SIDE = 64
SQUARES = [shapely.box(LEFT + x, TOP - 303, LEFT + x + 100, TOP - 203) for x in (203, 403)]
SHAPEFILE = ("shp", "shx", "dbf", "prj", "cpg")

Write = Callable[[Path], object]


@pytest.fixture
def talud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line in a project.

    The project has one area with an image. The function returns exit code, stdout and stderr.
    """
    write_raster(tmp_path / "data/optical.tif", np.random.default_rng(0).integers(9, 220, (3, SIDE, SIDE), np.uint8))
    write_project(tmp_path, {"here": {"role": "training", "folder": "data"}})
    monkeypatch.chdir(tmp_path)

    return runner(monkeypatch, capsys)


def vector(path: Path, **options: object) -> Path:
    frame = geopandas.GeoDataFrame({"note": ["a", "b"]}, geometry=SQUARES, crs=UTM)
    if path.suffix.lower() == ".kml":
        frame, options = frame.to_crs(4326), {"driver": "LIBKML"}
    pyogrio.write_dataframe(frame, path, **options)
    return path


def zipped(path: Path, *names: str, folder: str = "", write: Write = vector) -> None:
    """Write an archive of Shapefiles, or of other files, with these names."""
    scratch = path.parent.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            write(scratch / name)
            for part in sorted(scratch.glob(f"{Path(name).stem}.*")):
                archive.write(part, f"{folder}{part.name}")


def in_capitals(path: Path) -> None:
    vector(path.with_suffix(".shp"))
    for part in path.parent.glob(f"{path.stem}.*"):
        part.rename(part.with_name(part.name.upper()))


def google_earth(path: Path) -> None:
    """Write a KML in the layout of Google Earth.

    It has folders, one of points and one empty, and coordinates with a height.
    """
    placemark = "<Placemark><name>{}</name><{}>{}</{}></Placemark>"
    polygons = ""
    for number, square in enumerate(geopandas.GeoSeries(SQUARES, crs=UTM).to_crs(4326)):
        corners = " ".join(f"{x},{y},0" for x, y in square.exterior.coords)
        ring = f"<outerBoundaryIs><LinearRing><coordinates>{corners}</coordinates></LinearRing></outerBoundaryIs>"
        polygons += placemark.format(number, "Polygon", ring, "Polygon")
    point = placemark.format("camp", "Point", "<coordinates>-75.9,5.4,0</coordinates>", "Point")
    folders = "".join(
        f"<Folder><name>{name}</name>{content}</Folder>"
        for name, content in (("places", point), ("drawn", polygons), ("empty", ""))
    )
    path.write_text(f'<kml xmlns="http://www.opengis.net/kml/2.2"><Document>{folders}</Document></kml>')


READ: dict[str, tuple[str, Write]] = {
    "FlatGeobuf": ("fgb", vector),
    "KML": ("kml", vector),
    "KML of Google Earth": ("kml", google_earth),
    "KMZ": ("kmz", lambda path: zipped(path, "doc.kml")),
    "zipped Shapefile": ("zip", lambda path: zipped(path, "landslides.shp")),
    "zipped Shapefile, .shp.zip": ("shp.zip", lambda path: zipped(path, "landslides.shp")),
    "zipped Shapefile in a folder": ("ZIP", lambda path: zipped(path, "landslides.shp", folder="export/2015/")),
    "zipped GeoPackage": ("zip", lambda path: zipped(path, "landslides.gpkg")),
    "MapInfo": ("tab", vector),
    "Shapefile in capitals": ("SHP", in_capitals),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["inventory", "boundary", "cloud"])
@pytest.mark.parametrize("case", READ)
def test_polygons_of_each_format_give_the_same_pixels(talud: Run, tmp_path: Path, source: str, case: str) -> None:
    suffix, write = READ[case]
    vector(tmp_path / "data/inventory.gpkg")
    if source == "boundary":
        write(tmp_path / f"data/boundary.{suffix}")
        code, _, err = talud("stack", "here")
        assert code == 1
        assert "no pixel is known to be background" in err  # which shows that the boundary was read
        return
    vector(tmp_path / f"data/{source}.gpkg")
    stack, mask = stacked(talud, tmp_path)
    (tmp_path / f"data/{source}.gpkg").unlink()
    write(tmp_path / f"data/{source}.{suffix}")
    again, mask_again = stacked(talud, tmp_path)
    assert np.count_nonzero(mask == 1) == 128
    assert np.array_equal(mask_again, mask)
    assert np.array_equal(np.isnan(again[0]), np.isnan(stack[0]))
    assert np.isnan(again[0]).any() == (source == "cloud")


def stacked(talud: Run, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of the area's stack and mask."""
    code, _, err = talud("stack", "here")
    assert (code, err) == (0, "")
    with rasterio.open(root / "stacks/here.tif") as stack, rasterio.open(root / "stacks/here.mask.tif") as mask:
        return stack.read(), mask.read(1)


def text(content: str) -> Write:
    return lambda path: path.write_text(content)


def readme_alone(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")


SUPPORTED = r"GeoPackage \(\.gpkg\), Shapefile .*FlatGeobuf .*KML"
REFUSED: dict[str, tuple[str, Write, str]] = {
    "GeoParquet": ("inventory.parquet", text("PAR1"), rf"inventory\.parquet: .*not supported.*{SUPPORTED}"),
    "GML": ("inventory.gml", text("<gml/>"), SUPPORTED),
    "geodatabase": ("inventory.gdb", lambda path: path.mkdir(), SUPPORTED),
    "DXF as clouds": ("cloud.dxf", text("0"), rf"cloud\.dxf: .*{SUPPORTED}"),
    "two Shapefiles": (
        "inventory.zip",
        lambda path: zipped(path, "a.shp", "b.shp"),
        r"contains 2 vector files \(a\.shp, b\.shp\); keep",
    ),
    "no vector in an archive": (
        "inventory.zip", readme_alone, rf"contains no vector file, only readme\.txt.*{SUPPORTED}"
    ),
    "no archive": ("inventory.zip", text("hello"), r"inventory\.zip: cannot be read as an archive"),
    "damaged FlatGeobuf": ("inventory.fgb", text("hello"), r"inventory\.fgb: cannot be read as polygons"),
    "damaged KML": ("inventory.kml", text("<kml"), r"inventory\.kml: "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_vector_file_is_refused_in_one_line(talud: Run, tmp_path: Path, case: str) -> None:
    name, write, said = REFUSED[case]
    if name.startswith("cloud"):
        vector(tmp_path / "data/inventory.gpkg")
    write(tmp_path / "data" / name)
    code, out, err = talud("stack", "here")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.search(said, err), err


@pytest.mark.parametrize("case", ["FlatGeobuf", "KML", "KMZ", "zipped Shapefile"])
def test_corrections_are_read_in_any_format(talud: Run, tmp_path: Path, case: str) -> None:
    suffix, write = READ[case]
    vector(tmp_path / "data/inventory.gpkg")
    (tmp_path / "edits").mkdir()
    write(tmp_path / f"edits/new.{suffix}")
    code, out, err = talud("inventory", "import", tmp_path / f"edits/new.{suffix}", "--area", "here")
    assert (code, err) == (0, "")
    assert "unchanged: 2 polygons, 2.00 ha" in out


def test_correction_of_a_read_only_format_is_refused(talud: Run, tmp_path: Path) -> None:
    vector(tmp_path / "data/inventory.kml")
    before = (tmp_path / "data/inventory.kml").read_bytes()
    code, _, err = talud("inventory", "import", vector(tmp_path / "edits.gpkg"), "--area", "here")
    assert code == 1
    assert (
        "inventories of this format can be read but not written; convert it: ogr2ogr inventory.gpkg inventory.kml"
        in err
    )
    assert (tmp_path / "data/inventory.kml").read_bytes() == before


def test_reading_writes_no_file_next_to_a_source(talud: Run, tmp_path: Path) -> None:
    zipped(tmp_path / "data/inventory.zip", "landslides.shp")
    before = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert talud("stack", "here")[0] == 0
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == before


def test_archives_and_parts_are_not_second_sources(tmp_path: Path) -> None:
    for name in (
        "inventory.shp", "inventory.shx", "inventory.dbf", "inventory.zip", "inventory.shp.zip", "cloud.tab",
        "cloud.dat", "cloud.map", "cloud.id", "optical.tif", "optical.tab", "dtm.dat", "dtm.hdr", "dtm.zip",
        "boundary.kmz",
    ):  # fmt: skip
        (tmp_path / name).touch()
    found = sources.find_sources(tmp_path, {})
    assert {source: path.name for source, path in found.items()} == {
        "optical": "optical.tif",
        "dtm": "dtm.dat",
        "inventory": "inventory.shp",
        "boundary": "boundary.kmz",
        "cloud": "cloud.tab",
    }
    (tmp_path / "inventory.fgb").touch()
    with pytest.raises(SourceError, match=r"inventory\.fgb, inventory\.shp could all be inventory"):
        sources.find_sources(tmp_path, {})
