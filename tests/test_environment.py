"""Tests of environment variables of GDAL, PROJ and thread numbers."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio

from source_files import UTM, write_raster
from talud import process
from talud.process import CONFINED_DRIVERS, clean_environment

VALUES = np.random.default_rng(0).integers(30, 220, (3, 40, 50)).astype(np.uint8)


@pytest.fixture(scope="module")
def other_installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data of an older PROJ and an empty GDAL folder.

    The EPSG codes that talud uses are missing from the data.
    """
    folder = tmp_path_factory.mktemp("usr_share_proj")
    with closing(sqlite3.connect(folder / "proj.db")) as database:
        database.execute("CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT)")
        database.executemany(
            "INSERT INTO metadata VALUES (?, ?)",
            [("DATABASE.LAYOUT.VERSION.MAJOR", "1"), ("DATABASE.LAYOUT.VERSION.MINOR", "0")],
        )
        database.commit()
    return folder


def run(code: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=120)


COMMAND = "from talud.cli.main import main; main()"


@pytest.mark.slow
def test_map_keeps_its_epsg_code_with_foreign_proj_data(
    tmp_path: Path, tiny_model: Path, other_installation: Path
) -> None:
    image = write_raster(tmp_path / "image.tif", VALUES)
    other = str(other_installation)
    done = run(
        COMMAND, "map", "--model", tiny_model, "--optical", image, "--out", tmp_path / "map",
        PROJ_DATA=other, PROJ_LIB=other, GDAL_DATA=other, GDAL_DRIVER_PATH=other, GDAL_SKIP="COG", OGR_SKIP="GPKG",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "talud: warning: the environment sets GDAL_DATA, GDAL_DRIVER_PATH, GDAL_SKIP, OGR_SKIP, PROJ_DATA, PROJ_LIB, "
    )
    for name in ("stack.tif", "probability.tif", "landslides.tif"):
        with rasterio.open(tmp_path / "map" / name) as dataset:
            assert dataset.crs.to_epsg() == 32618
    assert pyogrio.read_info(tmp_path / "map/landslides.gpkg", layer="landslides")["crs"] == UTM


@pytest.mark.slow
def test_workers_make_the_same_map_with_foreign_proj_data(
    tmp_path: Path, tiny_model: Path, other_installation: Path
) -> None:
    image = write_raster(tmp_path / "image.tif", VALUES, descriptions=("red", "green", "blue"), units=("DN",) * 3)
    arguments = ["predict", tiny_model, image, "--tile", 32, "--workers", 1]
    for name, variables in {"usual": {}, "other": {"PROJ_DATA": str(other_installation)}}.items():
        done = run(COMMAND, *arguments, "--out", tmp_path / name, **variables)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("\n") == len(variables)
    for name in ("probability.tif", "landslides.tif", "landslides.gpkg", "prediction.json"):
        assert (tmp_path / "usual" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_package_data_is_used_if_rasterio_was_imported_first(other_installation: Path) -> None:
    code = """
import rasterio
import talud
from rasterio.crs import CRS
from pyproj import Transformer
print(CRS.from_epsg(32618).to_epsg(), *Transformer.from_crs(4326, 32618, always_xy=True).transform(-75, 0))
"""
    done = run(code, PROJ_DATA=str(other_installation))
    assert done.stdout.split() == ["32618", "500000.0", "0.0"], done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_gdal_option_that_shifts_half_a_pixel_is_ignored(tmp_path: Path) -> None:
    """Check GTIFF_POINT_GEO_IGNORE.

    The option shifts rasters whose coordinates are those of pixel centres.
    """
    path = write_raster(tmp_path / "dtm.tif", VALUES[:1].astype(np.float32), tags={"AREA_OR_POINT": "Point"})
    with rasterio.open(path) as dataset:
        expected = dataset.bounds.left
    code = f"""
from talud.raster import open_raster
with open_raster({str(path)!r}) as dataset:
    print(dataset.bounds.left)
"""
    plain = f"import rasterio; print(rasterio.open({str(path)!r}).bounds.left)"
    assert float(run(plain, GTIFF_POINT_GEO_IGNORE="YES").stdout) == pytest.approx(expected + 6.25)
    assert float(run(code, GTIFF_POINT_GEO_IGNORE="YES").stdout) == expected


@pytest.mark.parametrize(
    "name",
    [
        "PROJ_DATA", "PROJ_LIB", "PROJ_AUX_DB", "GDAL_DATA", "GDAL_DRIVER_PATH", "GDAL_SKIP", "OGR_SKIP",
        "GDAL_PAM_ENABLED", "GDAL_DISABLE_READDIR_ON_OPEN", "GDAL_GEOREF_SOURCES", "GDAL_CONFIG_FILE",
        "GDAL_VALIDATE_CREATION_OPTIONS", "GTIFF_IGNORE_READ_ERRORS", "GTIFF_POINT_GEO_IGNORE", "GTIFF_SRS_SOURCE",
        "OGR_ENABLE_PARTIAL_REPROJECTION", "OGR_CURRENT_DATE", "OSR_DEFAULT_AXIS_MAPPING_STRATEGY", "SHAPE_ENCODING",
        "CENTER_LONG", "COMPRESS_OVERVIEW",
    ],
)  # fmt: skip
def test_variable_that_changes_results_is_removed_and_named(name: str) -> None:
    environ = {name: "1", "HOME": "/home/somebody"}
    said = clean_environment(environ)
    assert environ == {"HOME": "/home/somebody"}
    assert said is not None
    assert f"sets {name}, which talud ignores" in said


@pytest.mark.parametrize(
    "name",
    [
        "GDAL_HTTP_PROXY", "GDAL_HTTP_CONNECTTIMEOUT", "GDAL_CACHEMAX", "GDAL_NUM_THREADS", "GDAL_VERSION",
        "GDAL_CURL_CA_BUNDLE", "PROJ_NETWORK", "CPL_DEBUG", "CPL_TMPDIR", "CPL_VSIL_CURL_ALLOWED_FILENAME",
        "VSI_CACHE", "AWS_REGION", "AWS_SECRET_ACCESS_KEY", "PATH",
    ],
)  # fmt: skip
def test_variables_of_network_memory_and_logging_are_kept(name: str) -> None:
    environ = {name: "1"}
    assert clean_environment(environ) is None
    assert environ == {name: "1"}


def test_drivers_disabled_by_the_service_stay_disabled() -> None:
    environ = dict.fromkeys(("GDAL_SKIP", "OGR_SKIP", CONFINED_DRIVERS), "HFA,VRT")
    assert clean_environment(environ) is None
    assert environ == dict.fromkeys(("GDAL_SKIP", "OGR_SKIP", CONFINED_DRIVERS), "HFA,VRT")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2,1", "2"), (" 3 , 1", "3"), ("4", "4"), (" 4 ", "4"), ("0", None), ("", None), ("-1", None),
        ("many", None), ("2.5", None), ("1e3", None), (",2", None), ("999999", "1024"), ("9" * 30, None), ("٣", None),
    ],
)  # fmt: skip
def test_thread_counts_are_normalised(given: str, expected: str | None) -> None:
    for name in ("OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS"):
        environ = {name: given}
        assert clean_environment(environ) is None
        assert environ.get(name) == expected


@pytest.mark.slow
def test_numexpr_is_imported_with_a_list_of_threads() -> None:
    """The service's tiles need numexpr, which reads the variable when it is imported."""
    code = "import talud, json, numexpr; print(json.dumps(numexpr.get_num_threads()))"
    for given, expected in (("2,1", 2), ("1", 1)):
        done = run(code, OMP_NUM_THREADS=given)
        assert (done.stderr, json.loads(done.stdout)) == ("", expected)


def test_variables_are_kept_if_rasterio_has_no_data(tmp_path: Path) -> None:
    """Check a rasterio of conda, which depends on conda's variables."""
    (tmp_path / "rasterio").mkdir()
    (tmp_path / "rasterio/__init__.py").touch()
    code = """
import sys
sys.path[:0] = sys.argv[1:]
from process import clean_environment
environ = {"PROJ_DATA": "/conda/share/proj", "GDAL_SKIP": "COG"}
clean_environment(environ)
print(environ)
"""
    done = run(code, tmp_path, Path(process.__file__).parent)
    assert done.stdout.strip() == "{'PROJ_DATA': '/conda/share/proj'}", done.stderr
