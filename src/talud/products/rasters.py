"""The products of a map, and its rasters, which are written window by window."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from talud import source_files
from talud.errors import OutputError, SourceError
from talud.files import synchronise
from talud.grid import Grid
from talud.mapping.journal import Journal
from talud.metrics import BACKGROUND, LANDSLIDE
from talud.process import stderr_suppressed
from talud.products.styles import qml
from talud.raster import ORIGIN_TAG, Layout, open_raster, writing_cog
from talud.text import dimensions
from talud.vector import merge_pending_edits

STACK = "stack.tif"  # what talud map makes of the sources, beside the map
IN_THE_MAKING = 13  # bytes a pixel: finished tiles 6, the three rasters before they are compressed 7
DISAGREEMENT = 8  # bytes more: 4 and 4
NODATA = 255  # in the class raster
COLOURS = {BACKGROUND: (244, 242, 236, 255), LANDSLIDE: (214, 40, 57, 255), NODATA: (150, 150, 150, 255)}


def check_space(out: Path, grid: Grid, disagreement: bool) -> None:
    """That the disk could hold the rasters of a map while they are made: better now than after days of computing.

    Raises:
        OutputError: it could not, were it empty.
    """
    folder = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    pixel = IN_THE_MAKING + (DISAGREEMENT if disagreement else 0)
    needed, total = pixel * grid.height * grid.width, shutil.disk_usage(folder).total
    if total and needed > total:  # some file systems do not say
        raise OutputError(
            f"{out}: a map of {dimensions(grid.width, grid.height)} takes at least {needed / 10**6:,.0f} MB while it "
            f"is made, and the disk there has {total / 10**6:,.0f} MB in all; map a part of the raster, or name "
            "another --out"
        )


@dataclass(frozen=True)
class Products:
    """The files of a map, in the order in which they appear."""

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
        """Where they lie in a folder."""
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
        """Only in the making: the raster that the polygons are traced from."""
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
                synchronise(made)
        merge_pending_edits(there.polygons)
        there.record.parent.mkdir(parents=True, exist_ok=True)
        there.record.unlink(missing_ok=True)
        for made, path in files:
            if made.exists():
                made.replace(path)
            else:
                path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.aux.xml").unlink(missing_ok=True)  # statistics that a GIS kept


def has_record(folder: Path) -> bool:
    """Check whether a folder holds the record of a map."""
    try:
        content = json.loads(Products.within(folder).record.read_bytes())
        return isinstance(content["model"], dict) and "raster" in content
    except (OSError, ValueError, TypeError, KeyError):
        return False


def check_out(out: Path, inputs: Iterable[str | Path], more: tuple[str, ...] = ()) -> None:
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
    ours = has_record(out) or Journal.publishing_to(out) or _has_stack(out)
    source_files.check_output_folder(out, names, inputs, ours=ours, kept=() if more else (STACK,))


def _has_stack(folder: Path) -> bool:
    try:
        with open_raster(folder / STACK) as dataset:
            return ORIGIN_TAG in dataset.tags()
    except SourceError:
        return False


@dataclass(frozen=True)
class MapRasters:
    """The open rasters of a map.

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

    @classmethod
    @contextmanager
    def writing(
        cls, products: Products, grid: Grid, threshold: float, tags: Mapping[str, str], *, disagreement: bool = False
    ) -> Iterator[MapRasters]:
        """Rasters to fill window by window, which become COGs at the end; the styles of QGIS lie beside them.

        Raises:
            OutputError: one cannot be written.
        """
        probability = Layout("float32", float("nan"), ("probability",), tags=tags)
        classes = Layout("uint8", NODATA, ("landslides",), tags=tags, colours=COLOURS, overviews="mode")
        parts = Layout("uint16", None, ("parts",), overviews="nearest")
        products.probability_style.write_text(qml("probability"), encoding="utf-8")
        products.classes_style.write_text(qml("classes"), encoding="utf-8")
        with ExitStack() as rasters:
            spread = None
            if disagreement:
                layout = replace(probability, bands=("disagreement",))
                products.disagreement_style.write_text(qml("disagreement"), encoding="utf-8")
                spread = rasters.enter_context(writing_cog(products.disagreement, grid, layout))
            yield cls(
                threshold,
                rasters.enter_context(writing_cog(products.probability, grid, probability)),
                rasters.enter_context(writing_cog(products.classes, grid, classes)),
                rasters.enter_context(writing_cog(products.parts, grid, parts)),
                spread,
            )

    def write(
        self,
        window: Window,
        probability: NDArray[np.float32],
        blocked: NDArray[np.uint16],
        disagreement: NDArray[np.float32] | None = None,
    ) -> int:
        """Fill a window; how many of its pixels are mapped as landslide.

        Args:
            window: of whole pixels.
            probability: (height, width) of the window; not looked at where `blocked`.
            blocked: code of the reason why a pixel is not mapped, 0 where it is; same shape.
            disagreement: of the probabilities, where that is written; same shape, not looked at where `blocked`.
        """
        mapped = blocked == 0
        landslide = mapped & (probability >= self.threshold)
        with stderr_suppressed():  # as in `writing_cog`
            self._probability.write(np.where(mapped, probability, np.float32(np.nan)), 1, window=window)
            self._classes.write(np.where(mapped, landslide, NODATA).astype(np.uint8), 1, window=window)
            self._parts.write(np.where(mapped, landslide, blocked + 1).astype(np.uint16), 1, window=window)
            if self._disagreement is not None and disagreement is not None:
                self._disagreement.write(np.where(mapped, disagreement, np.float32(np.nan)), 1, window=window)
        return int(np.count_nonzero(landslide))
