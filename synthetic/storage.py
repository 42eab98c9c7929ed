"""Files of a basin, each marked as synthetic."""

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

# Part of the bytes of the sample data, which were written when the generator was the command `talud sample`.
SOURCE = "synthetic: made by talud sample, not observed"
FILES = ("optical.tif", "dtm.tif", "sar_pre.tif", "sar_post.tif", "inventory.gpkg", "cloud.gpkg")
# A GeoPackage holds the time of writing, which would change its bytes each time.
_CLOCK = "2015-01-01T00:00:00Z"


def write(basin: Basin, folder: Path) -> tuple[Path, ...]:
    """Write the sources of a basin into `folder`, all or none, and return their paths.

    Raises:
        OutputError: a file cannot be written.
    """
    check_folder(folder)
    paths = tuple(folder / name for name in FILES)
    with atomic_replace_all(*paths) as (image, dtm, pre, post, inventory, cloud):
        _raster(image, basin.grid, basin.optical, ("red", "green", "blue"), "reflectance", optical.SCALE)
        _raster(dtm, basin.grid, basin.dtm[None], ("elevation",), "m", DTM_SCALE)
        _raster(pre, basin.grid, basin.sar_pre[None], ("VV",), "amplitude", radar.SCALE)
        _raster(post, basin.grid, basin.sar_post[None], ("VV",), "amplitude", radar.SCALE)
        _polygons(inventory, basin.grid, basin.inventory)
        _polygons(cloud, basin.grid, basin.cloud)
    return paths


def check_folder(folder: Path) -> None:
    """Check that a basin can be written into a folder without replacing files of the user.

    Raises:
        OutputError: it cannot.
    """
    source_files.check_output_folder(folder, FILES, (), ours=_is_sample(folder))


def _is_sample(folder: Path) -> bool:
    """Check whether a folder holds a basin that this module wrote."""
    try:
        with open_raster(folder / FILES[0]) as dataset:
            return bool(dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION") == SOURCE)
    except SourceError:
        return False


def _raster(path: Path, grid: Grid, counts: NDArray[np.integer], names: Sequence[str], unit: str, scale: float) -> None:
    """A GeoTIFF as small as DEFLATE makes it; a count × scale is a value in `unit`."""
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


def _polygons(path: Path, grid: Grid, polygons: Sequence[Polygon]) -> None:
    """A GeoPackage of polygons with their area in m²."""
    import geopandas

    table = geopandas.GeoDataFrame(
        {"area_m2": [round(polygon.area, 1) for polygon in polygons], "source": SOURCE},
        geometry=list(polygons),
        crs=grid.crs.to_wkt(),
    )
    with _stopped_clock():
        # Not every build of SQLite can make a spatial index, and so few polygons need none.
        table.to_file(plain_path(path), driver="GPKG", layer=path.stem, SPATIAL_INDEX="NO")


@contextmanager
def _stopped_clock() -> Iterator[None]:
    import pyogrio

    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _CLOCK})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
