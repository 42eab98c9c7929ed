"""Files of a synthetic basin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from shapely import Polygon

from synthetic import optical, radar
from synthetic.basin import DTM_SCALE, Basin
from talud import source_files
from talud.errors import OutputError, SourceError
from talud.files import atomic_replace_all
from talud.grid import Grid
from talud.raster import open_raster
from talud.vector import plain_path

# Part of the published sample data, which were written by the former command `talud sample`.
SOURCE = "synthetic: made by talud sample, not observed"
FILES = ("optical.tif", "dtm.tif", "sar_pre.tif", "sar_post.tif", "inventory.gpkg", "cloud.gpkg")
# Written into GeoPackages instead of the current time, so that the same seed gives the same bytes.
_FIXED_TIME = "2015-01-01T00:00:00Z"


def write(basin: Basin, folder: Path) -> tuple[Path, ...]:
    """Write the sources of a basin to a folder, all or none; return their paths.

    Raises:
        OutputError: a file cannot be written.
    """
    check_folder(folder)
    paths = tuple(folder / name for name in FILES)
    with atomic_replace_all(*paths) as (image, dtm, pre, post, inventory, cloud):
        _write_raster(image, basin.grid, basin.optical, ("red", "green", "blue"), "reflectance", optical.SCALE)
        _write_raster(dtm, basin.grid, basin.dtm[None], ("elevation",), "m", DTM_SCALE)
        _write_raster(pre, basin.grid, basin.sar_pre, ("VV", "VH"), "amplitude", radar.SCALE)
        _write_raster(post, basin.grid, basin.sar_post, ("VV", "VH"), "amplitude", radar.SCALE)
        _write_polygons(inventory, basin.grid, basin.inventory)
        _write_polygons(cloud, basin.grid, basin.cloud)
    return paths


def check_folder(folder: Path) -> None:
    """Check that a folder holds no files that a basin would overwrite.

    Raises:
        OutputError: the folder holds other files.
    """
    source_files.check_output_folder(folder, FILES, (), replaceable=_is_sample(folder))


def _is_sample(folder: Path) -> bool:
    """Return whether a folder holds a basin that this module wrote."""
    try:
        with open_raster(folder / FILES[0]) as dataset:
            return bool(dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION") == SOURCE)
    except SourceError:
        return False


def _write_raster(
    path: Path, grid: Grid, counts: NDArray[np.integer], names: Sequence[str], unit: str, scale: float
) -> None:
    """Write a compressed GeoTIFF; count × scale is a value in `unit`."""
    profile = {
        "driver": "GTiff",
        "crs": grid.crs,
        "transform": grid.transform,
        "height": grid.height,
        "width": grid.width,
        "count": len(counts),
        "dtype": counts.dtype,
        "interleave": "band",
        "photometric": "RGB" if len(counts) == 3 else "MINISBLACK",
        "compress": "DEFLATE",
        "zlevel": 9,
        "predictor": 2,
    }
    try:
        with rasterio.open(path, "w", **profile) as writer:
            writer.write(counts)
            writer.descriptions, writer.units = tuple(names), (unit,) * len(counts)
            writer.scales, writer.offsets = (scale,) * len(counts), (0.0,) * len(counts)
            writer.update_tags(TALUD_SYNTHETIC="yes", TIFFTAG_IMAGEDESCRIPTION=SOURCE)
    except RasterioError as error:
        raise OutputError(f"{path.name}: cannot be written: {error}") from error


def _write_polygons(path: Path, grid: Grid, polygons: Sequence[Polygon]) -> None:
    """Write a GeoPackage of polygons with their area in m²."""
    import geopandas

    table = geopandas.GeoDataFrame(
        {"area_m2": [round(polygon.area, 1) for polygon in polygons], "source": SOURCE},
        geometry=list(polygons),
        crs=grid.crs.to_wkt(),
    )
    with _fixed_gdal_time():
        # Not every build of SQLite supports spatial indexes, and few polygons need none.
        table.to_file(plain_path(path), driver="GPKG", layer=path.stem, SPATIAL_INDEX="NO")


@contextmanager
def _fixed_gdal_time() -> Iterator[None]:
    import pyogrio

    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _FIXED_TIME})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
