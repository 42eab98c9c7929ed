"""Names, publication and rasters of a map's files."""

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

# Stack that `talud map` writes next to the map.
STACK_FILE_NAME = "stack.tif"
# Finished tiles take 6 bytes, the three uncompressed rasters 7.
WORKING_BYTES_PER_PIXEL = 13
# Additional bytes with test-time augmentation: 4 in the tiles and 4 in the raster.
DISAGREEMENT_BYTES_PER_PIXEL = 8
CLASS_NODATA = 255
PIXEL_CLASS_COLOURS = {
    BACKGROUND: (244, 242, 236, 255),
    LANDSLIDE: (214, 40, 57, 255),
    CLASS_NODATA: (150, 150, 150, 255),
}


def qgis_style(name: str) -> str:
    """Return the QGIS style (QML) of a layer by name."""
    return (files("talud.products") / "styles" / f"{name}.qml").read_text(encoding="utf-8")


def check_disk_space(out: Path, grid: Grid, disagreement: bool) -> None:
    """Check that the disk can hold the map's rasters.

    Raises:
        OutputError: The disk is too small even if it were empty.
    """
    folder = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    pixel = WORKING_BYTES_PER_PIXEL + (DISAGREEMENT_BYTES_PER_PIXEL if disagreement else 0)
    needed, total = pixel * grid.height * grid.width, shutil.disk_usage(folder).total
    # Some file systems report a size of 0.
    if total and needed > total:
        raise OutputError(
            f"{out}: a map of {dimensions(grid.width, grid.height)} takes at least {needed / 10**6:,.0f} MB while it "
            f"is made, but the disk has {total / 10**6:,.0f} MB in total; map a part of the raster, or set --out to a "
            "folder on a larger disk"
        )


@dataclass(frozen=True)
class Products:
    """Paths of a map's files in order of publication."""

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
        """Return the paths of the files in a folder."""
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
        """Path of the temporary raster of the polygons."""
        return self.classes.with_name("parts.tif")

    def publish(self, out: Path) -> None:
        """Move the files to the folder `out`.

        The folder must be on the same disk. Files of an earlier map are deleted. The record is deleted first and moved
        last, so a folder with a record contains a complete map.

        Raises:
            OutputError: Another program has the earlier polygons open; nothing was moved.
            OSError: The folder cannot be created or written, or a folder is in the way; nothing was moved.
        """
        # A symbolic link may point to a folder that does not exist yet.
        there = Products.within(out.resolve())
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
            # A GIS stores statistics of the earlier raster in this file.
            path.with_name(f"{path.name}.aux.xml").unlink(missing_ok=True)


def has_map_record(folder: Path) -> bool:
    """Check if a folder contains a map record."""
    try:
        content = json.loads(Products.within(folder).record.read_bytes())
        return isinstance(content["model"], dict) and "raster" in content
    except (OSError, ValueError, TypeError, KeyError):
        return False


def check_map_folder(out: Path, inputs: Iterable[str | Path], more: tuple[str, ...] = ()) -> None:
    """Check that a map can be written to a folder.

    The folder must not contain an input, or files of the user with the names of the map's files. Files with these
    names belong to talud if the folder contains a map record or a stack of `talud map`, or if a run was interrupted
    while it moved them there.

    Args:
        out: folder of the map.
        inputs: files that are read. The stack of `talud map` may be in the folder.
        more: names of further files that are written.

    Raises:
        OutputError: The folder contains an input or files of the user.
    """
    source_files.check_output_name(out)
    names = [*(path.name for path in astuple(Products.within(out))), *more]
    ours = has_map_record(out) or Journal.was_publishing(out) or _has_talud_stack(out)
    source_files.check_output_folder(out, names, inputs, replaceable=ours, kept=() if more else (STACK_FILE_NAME,))


def _has_talud_stack(folder: Path) -> bool:
    try:
        with open_raster(folder / STACK_FILE_NAME) as dataset:
            return ORIGIN_TAG in dataset.tags()
    except SourceError:
        return False


@dataclass
class PixelCounts:
    """Numbers of pixels and tiles of a map.

    Attributes:
        unmapped: number of pixels by code of the reason (see `talud.engine.coverage`); code 0 is mapped.
        partial: number of pixels by code of the missing band groups; code 0 is not counted.
        landslide: number of landslide pixels.
        skipped: number of tiles without a pixel to map.
    """

    unmapped: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1 << 16, np.int64))
    partial: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1 << 16, np.int64))
    landslide: int = 0
    skipped: int = 0

    @property
    def mapped(self) -> int:
        """Number of mapped pixels."""
        return int(self.unmapped[0])

    def reasons(self, contract: Contract) -> dict[int, str]:
        """Return the reasons of unmapped pixels by code."""
        return {int(code): describe_code(int(code), contract) for code in self.unmapped.nonzero()[0] if code}

    def add(self, block: TileResult, landslide: NDArray[np.bool_]) -> None:
        """Count a tile."""
        self.landslide += int(np.count_nonzero(landslide))
        self.unmapped += np.bincount(block.unmapped.ravel(), minlength=len(self.unmapped))
        self.skipped += bool(block.unmapped.all())
        if block.partial is not None:
            self.partial += np.bincount(block.partial.ravel(), minlength=len(self.partial))
            self.partial[0] = 0


@dataclass(frozen=True)
class MapRasters:
    """Open rasters to which tiles are written.

    `probability.tif` is float32; unmapped pixels are NaN. uint16 would halve the size of the file, but rounding could
    move a pixel across the threshold. With float32, the classes of `landslides.tif` follow from the stored
    probabilities at any threshold.

    `landslides.tif` is uint8: 0 background, 1 landslide, 255 not mapped.

    `disagreement.tif` is float32, only with test-time augmentation; unmapped pixels are NaN.

    `parts.tif` is the uint16 input of the polygons: 0 background, 1 landslide, 1 + code of the reason for unmapped
    pixels (see `talud.engine.coverage`).
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
        """Open the rasters for writing, and write their styles.

        The rasters are converted to COGs when the context ends.

        Args:
            products: paths of the map's files.
            grid: grid of the map.
            threshold: lowest probability of a landslide pixel.
            tags: tags of the rasters.
            disagreement: whether the map has a disagreement raster.

        Raises:
            OutputError: A raster cannot be written.
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
        # GDAL prints warnings, as in `writing_cog`.
        with stderr_suppressed():
            self._probability.write(np.where(mapped, block.probability, np.float32(np.nan)), 1, window=window)
            self._classes.write(np.where(mapped, landslide, CLASS_NODATA).astype(np.uint8), 1, window=window)
            self._parts.write(np.where(mapped, landslide, block.unmapped + 1).astype(np.uint16), 1, window=window)
            if self._disagreement is not None and block.disagreement is not None:
                spread = np.where(mapped, block.disagreement, np.float32(np.nan))
                self._disagreement.write(spread, 1, window=window)
