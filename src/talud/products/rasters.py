"""Files of a map: their names, their publication, and the rasters among them."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from talud import source_files
from talud.contract import Contract
from talud.engine.coverage import describe_code
from talud.engine.tiling import Tile
from talud.errors import OutputError, SourceError
from talud.files import sync_to_disk
from talud.grid import Grid
from talud.mapping.journal import Journal, TileResult
from talud.metrics import BACKGROUND, LANDSLIDE
from talud.process import stderr_suppressed
from talud.raster import ORIGIN_TAG, Layout, open_raster, write_cog
from talud.text import dimensions
from talud.vector import merge_pending_edits

STACK_FILE_NAME = "stack.tif"  # what talud map makes of the sources, beside the map
WORKING_BYTES_PER_PIXEL = 13  # bytes a pixel: finished tiles 6, the three rasters before they are compressed 7
DISAGREEMENT_BYTES_PER_PIXEL = 8  # bytes more: 4 and 4
CLASS_NODATA = 255  # in the class raster
PIXEL_CLASS_COLOURS = {
    BACKGROUND: (244, 242, 236, 255),
    LANDSLIDE: (214, 40, 57, 255),
    CLASS_NODATA: (150, 150, 150, 255),
}


def qgis_style(name: str) -> str:
    """Return the QGIS style of a raster or layer as QML, such as `probability`."""
    return (files("talud.products") / "styles" / f"{name}.qml").read_text(encoding="utf-8")


def check_disk_space(out: Path, grid: Grid, disagreement: bool) -> None:
    """Check that the disk can hold the rasters of a map while they are made.

    Raises:
        OutputError: it could not, were it empty.
    """
    folder = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    pixel = WORKING_BYTES_PER_PIXEL + (DISAGREEMENT_BYTES_PER_PIXEL if disagreement else 0)
    needed, total = pixel * grid.height * grid.width, shutil.disk_usage(folder).total
    if total and needed > total:  # some file systems do not say
        raise OutputError(
            f"{out}: a map of {dimensions(grid.width, grid.height)} takes at least {needed / 10**6:,.0f} MB while it "
            f"is made, and the disk there has {total / 10**6:,.0f} MB in all; map a part of the raster, or name "
            "another --out"
        )


@dataclass(frozen=True)
class Products:
    """Files of a map, in the order in which they appear."""

    probability: Path
    probability_style: Path
    classes: Path
    classes_style: Path
    disagreement: Path
    disagreement_style: Path
    polygons: Path
    geojson: Path
    quicklook: Path
    summary: Path
    timings: Path
    record: Path

    @classmethod
    def within(cls, folder: Path) -> Products:
        """Return the files in a folder."""
        return cls(
            folder / "probability.tif",
            folder / "probability.qml",
            folder / "landslides.tif",
            folder / "landslides.qml",
            folder / "disagreement.tif",
            folder / "disagreement.qml",
            folder / "landslides.gpkg",
            folder / "landslides.geojson",
            folder / "quicklook.png",
            folder / "summary.html",
            folder / "timings.json",
            folder / "prediction.json",
        )

    @property
    def parts(self) -> Path:
        """Return the temporary raster that the polygons are traced from."""
        return self.classes.with_name("parts.tif")

    def publish(self, out: Path) -> None:
        """Move the files to the folder `out`, on the same disk, where nothing of an earlier map is left.

        The record is taken away first and put there last: a folder that holds it holds a whole map.

        Raises:
            OutputError: another program has the earlier polygons open; then nothing was moved.
            OSError: the folder cannot be made or written to, or a folder is in the way; then nothing was moved.
        """
        there = Products.within(out.resolve())  # a link may lead to a folder that is yet to be made
        files = list(zip(astuple(self), astuple(there), strict=True))
        for made, path in files:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, f"a folder named {path.name} is in the way")
            if made.exists():
                sync_to_disk(made)
        merge_pending_edits(there.polygons)
        there.record.parent.mkdir(parents=True, exist_ok=True)
        there.record.unlink(missing_ok=True)
        for made, path in files:
            if made.exists():
                made.replace(path)
            else:
                path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.aux.xml").unlink(missing_ok=True)  # statistics that a GIS kept


def has_map_record(folder: Path) -> bool:
    """Check whether a folder holds the record of a map."""
    try:
        content = json.loads(Products.within(folder).record.read_bytes())
        return isinstance(content["model"], dict) and "raster" in content
    except (OSError, ValueError, TypeError, KeyError):
        return False


def check_map_folder(out: Path, inputs: Iterable[str | Path], more: tuple[str, ...] = ()) -> None:
    """Check that a map can be written to a folder.

    The folder must hold no input, and none of the user's own files under the names of the map's files.

    Files of the map's names are talud's where the record of a map lies beside them, where a stack of talud map does,
    or where a run was interrupted while it moved them there.

    Args:
        out: folder of the map.
        inputs: what is read. The stack that talud map put there may lie in the folder.
        more: names of files that are written beside the map's.

    Raises:
        OutputError: it cannot.
    """
    source_files.check_output_name(out)
    names = [*(path.name for path in astuple(Products.within(out))), *more]
    ours = has_map_record(out) or Journal.was_publishing(out) or _has_talud_stack(out)
    source_files.check_output_folder(out, names, inputs, ours=ours, kept=() if more else (STACK_FILE_NAME,))


def _has_talud_stack(folder: Path) -> bool:
    try:
        with open_raster(folder / STACK_FILE_NAME) as dataset:
            return ORIGIN_TAG in dataset.tags()
    except SourceError:
        return False


@dataclass
class PixelCounts:
    """Numbers of pixels and tiles of a map, counted while its rasters are written.

    Attributes:
        blocked: number of pixels by their code of `coverage.Coverage.blocked`.
        reduced: likewise for `coverage.Coverage.reduced`; pixels of code 0 are not counted.
        landslide: number of landslide pixels.
        skipped: number of tiles without a pixel to map.
    """

    blocked: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1 << 16, np.int64))
    reduced: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1 << 16, np.int64))
    landslide: int = 0
    skipped: int = 0

    @property
    def mapped(self) -> int:
        """Return the number of mapped pixels."""
        return int(self.blocked[0])

    def reasons(self, contract: Contract) -> dict[int, str]:
        """Return the codes of pixels that are not mapped, with the reason in words."""
        return {int(code): describe_code(int(code), contract) for code in self.blocked.nonzero()[0] if code}

    def add(self, block: TileResult, landslide: NDArray[np.bool_]) -> None:
        """Count a tile."""
        self.landslide += int(np.count_nonzero(landslide))
        self.blocked += np.bincount(block.unmapped.ravel(), minlength=len(self.blocked))
        self.skipped += bool(block.unmapped.all())
        if block.partial is not None:
            self.reduced += np.bincount(block.partial.ravel(), minlength=len(self.reduced))
            self.reduced[0] = 0


@dataclass(frozen=True)
class MapRasters:
    """Open rasters of a map: the sink of its tiles.

    `probability.tif` is float32 with NaN where the map says nothing. uint16 would halve the file, but what lies at
    the threshold could then fall on either side of it: as float32, the probabilities that anybody reads give the
    classes of `landslides.tif` again, at any threshold, without a scale to know of.

    `landslides.tif` holds 0 background, 1 landslide, 255 nodata.

    `disagreement.tif`, with test-time augmentation alone, is float32 with NaN where the map says nothing.

    `parts.tif` holds 0 where nothing is to be traced, 1 landslide, 1 + code where a pixel is not mapped for the
    reason of that code (see `coverage`).
    """

    threshold: float
    _probability: DatasetWriter
    _classes: DatasetWriter
    _parts: DatasetWriter
    _disagreement: DatasetWriter | None
    counts: PixelCounts = field(default_factory=PixelCounts)

    @classmethod
    @contextmanager
    def writing(
        cls, products: Products, grid: Grid, threshold: float, tags: Mapping[str, str], *, disagreement: bool = False
    ) -> Iterator[MapRasters]:
        """Open the rasters, which become COGs at the end, and write their styles.

        Raises:
            OutputError: One cannot be written.
        """
        probability = Layout("float32", float("nan"), ("probability",), tags=tags)
        classes = Layout(
            "uint8", CLASS_NODATA, ("landslides",), tags=tags, colours=PIXEL_CLASS_COLOURS, overviews="mode"
        )
        parts = Layout("uint16", None, ("parts",), overviews="nearest")
        products.probability_style.write_text(qgis_style("probability"), encoding="utf-8")
        products.classes_style.write_text(qgis_style("classes"), encoding="utf-8")
        with ExitStack() as rasters:
            spread = None
            if disagreement:
                layout = replace(probability, bands=("disagreement",))
                products.disagreement_style.write_text(qgis_style("disagreement"), encoding="utf-8")
                spread = rasters.enter_context(write_cog(products.disagreement, grid, layout))
            yield cls(
                threshold,
                rasters.enter_context(write_cog(products.probability, grid, probability)),
                rasters.enter_context(write_cog(products.classes, grid, classes)),
                rasters.enter_context(write_cog(products.parts, grid, parts)),
                spread,
            )

    def write(self, tile: Tile, block: TileResult) -> None:
        """Write and count a tile."""
        window, mapped = Window(*tile.core), block.unmapped == 0
        landslide = mapped & (block.probability >= self.threshold)
        self.counts.add(block, landslide)
        with stderr_suppressed():  # as in `writing_cog`
            self._probability.write(np.where(mapped, block.probability, np.float32(np.nan)), 1, window=window)
            self._classes.write(np.where(mapped, landslide, CLASS_NODATA).astype(np.uint8), 1, window=window)
            self._parts.write(np.where(mapped, landslide, block.unmapped + 1).astype(np.uint16), 1, window=window)
            if self._disagreement is not None and block.disagreement is not None:
                spread = np.where(mapped, block.disagreement, np.float32(np.nan))
                self._disagreement.write(spread, 1, window=window)
