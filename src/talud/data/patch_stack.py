"""Stack of an area of patches, placed side by side.

With a stack, patches are processed like any other area: data version, split, study, maps, scores, gate, report.
Neighbouring patches in the stack are not neighbours on the ground, so the tag `TALUD_PATCH` states their side: no
block, tile or polygon crosses the border of a patch. Patches whose pixel size is not that of the project are resampled
one by one if `stack.pixel_sizes` says so, and padded with invalid pixels to a side that networks can tile.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from talud import source_files
from talud.data.masks import KnownPixels, check_both_classes, mask_layout
from talud.data.patch_folder import PatchFolder
from talud.data.patch_resampling import PatchResampling
from talud.data.stack_record import BANDS_TAG_PREFIX, StackRecord, sources_tag, stack_settings
from talud.errors import SourceError
from talud.files import atomic_replace_all, md5
from talud.grid import Grid
from talud.metrics import UNKNOWN
from talud.params import Area
from talud.process import stderr_suppressed
from talud.progress import Progress
from talud.project import Project
from talud.raster import CONTENT_TAG, PARTS_TAG, PATCH_TAG, SOURCE_RESOLUTION_TAG, Layout, write_cog

# A local CRS, since the patches have no known location.
_CRS = CRS.from_wkt('LOCAL_CS["patches side by side",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]')
_MAX_ASPECT_RATIO = 1.25  # largest ratio of a side to that of a square; larger ones would leave fewer empty cells


@dataclass(frozen=True)
class _Cells:
    """Cells of a patch stack: patches, resampled and padded if necessary.

    Attributes:
        folder: the patches.
        resampling: resampling of each patch; None if it is taken as it is.
        side: side of a cell in pixels.
        pixel_size: side of its pixels, in metres.
    """

    folder: PatchFolder
    resampling: PatchResampling | None
    side: int
    pixel_size: float

    @classmethod
    def of(cls, folder: PatchFolder, resampling: PatchResampling | None) -> Self:
        """Return the cells of a folder."""
        if resampling is None:
            return cls(folder, None, folder.side, folder.data.pixel_size)
        return cls(folder, resampling, resampling.cell, resampling.target)

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        return self.folder.bands.names

    @property
    def units(self) -> tuple[str, ...]:
        """Unit of each band."""
        return self.folder.bands.units

    def read(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Read bands and mask of a cell; a cell without a patch is invalid and unknown."""
        if number >= len(self.folder.pairs):
            shape = self.side, self.side
            return np.full((len(self.bands), *shape), np.nan, np.float32), np.full(shape, UNKNOWN, np.uint8)
        pair = self.folder.pairs[number]
        values, truth = self.folder.read(pair)
        if self.resampling is None:
            return values, truth
        resampled = self.resampling.bands(values, self.bands, self.units, pair.image)
        return resampled, self.resampling.mask(truth, pair.mask or pair.image)


def build_patch_stack(project: Project, area: str, progress: Progress | None = None) -> StackRecord:
    """Make stack, mask and record from patches.

    After an error, none of them is written.

    Args:
        project: the project.
        area: name of an area that has `patches`.
        progress: callback that receives the number of finished patches and that of all patches.

    Raises:
        SourceError: Images or masks are missing, cannot be read or do not fit together; a band set needs a band that
            they lack; or an area that needs landslides has none.
        OutputError: The files cannot be written.
    """
    described = project.params.area(area)
    assert described.patches is not None
    options = project.params.stack
    folder = PatchFolder.find(project.folder(described), described.patches, described.sar_unit, options)
    _check_band_sets(project, area, folder)
    fingerprints = folder.fingerprints
    resampling = PatchResampling.of(folder.side, folder.data.pixel_size, project.params.stack)
    cells = _Cells.of(folder, resampling)
    tags = _tags(area, described, cells) | sources_tag(fingerprints)
    targets = project.stack(area), project.mask(area), project.stack_record(area)
    for target in targets:
        source_files.check_output_file(target, [])
        source_files.check_not_input(target, folder.files)
    with atomic_replace_all(*targets) as (stack, mask, record):
        known = _write(cells, tags, stack, mask, progress)
        if described.role != "transfer" and not (known and known.landslide):
            raise SourceError(
                f"{project.folder(described)}: the masks of its {len(folder.pairs)} patches contain no landslide, and "
                f"area '{area}' has the role {described.role}; check patches.masks"
            )
        if known:
            check_both_classes(known, f"the masks of area '{area}'", described.role)
        landslides = known.landslide if known else None
        settings = stack_settings(described, options, processed=bool(folder.bands.processing_tags))
        made = _record(area, described, cells, fingerprints, (md5(stack), md5(mask)), landslides, settings)
        made.write(record)
    return made


def rows_and_columns(count: int) -> tuple[int, int]:
    """Return rows and columns for a number of patches.

    The layout is close to a square, with as few empty cells as possible.
    """
    root = math.sqrt(count)
    widths = range(max(math.floor(root / _MAX_ASPECT_RATIO), 1), math.ceil(root * _MAX_ASPECT_RATIO) + 1)
    columns = min(widths, key=lambda width: (-count % width, abs(width - root)))
    return -(-count // columns), columns


def _check_band_sets(project: Project, area: str, folder: PatchFolder) -> None:
    """Check that patches have all bands."""
    for band_set, bands in project.params.band_sets.items():
        for name in bands:
            if name not in folder.bands.names:
                raise SourceError(
                    f"area '{area}' consists of patches with {', '.join(folder.bands.names)}, but band set "
                    f"'{band_set}' needs {name}; add its channel to patches.bands, or remove it from the set"
                )


def _tags(name: str, area: Area, cells: _Cells) -> dict[str, str]:
    data, parts = cells.folder.data, cells.folder.part_counts
    tags = {
        "TALUD_AREA": name,
        "TALUD_EVENT": area.event,
        "TALUD_ACQUIRED_OPTICAL": area.acquired.optical,
        "TALUD_ACQUIRED_SAR_PRE": area.acquired.sar_pre,
        "TALUD_ACQUIRED_SAR_POST": area.acquired.sar_post,
        "TALUD_RESOLUTION": f"{cells.pixel_size:.10g}",
        SOURCE_RESOLUTION_TAG: f"{data.pixel_size:.10g}" if cells.resampling else None,
        PATCH_TAG: cells.side,
        CONTENT_TAG: cells.resampling.new_side if cells.resampling else None,
        PARTS_TAG: " ".join(map(str, parts)) if parts else None,
        BANDS_TAG_PREFIX + "IMAGES": ", ".join(f"{band} {number}" for band, number in data.bands.items()),
        **cells.folder.bands.processing_tags,
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _write(
    cells: _Cells, tags: dict[str, str], stack: Path, mask: Path, progress: Progress | None
) -> KnownPixels | None:
    """Write stack and mask; return the known pixels.

    The result is None if no patch has a mask.
    """
    folder, side, size = cells.folder, cells.side, cells.pixel_size
    rows, columns = rows_and_columns(len(folder.pairs))
    grid = Grid(_CRS, Affine(size, 0, 0, 0, -size, rows * side * size), rows * side, columns * side)
    layout = Layout("float32", float("nan"), cells.bands, cells.units, tags)
    known = KnownPixels()
    with ExitStack() as writers:
        stack_writer = writers.enter_context(write_cog(stack, grid, layout))
        mask_writer = writers.enter_context(write_cog(mask, grid, mask_layout(tags)))
        for number, window in enumerate(grid.windows(side)):
            values, truth = cells.read(number)
            known += KnownPixels.of(truth)
            with stderr_suppressed():  # as in `write_cog`
                stack_writer.write(values, window=window)
                mask_writer.write(truth, 1, window=window)
            if progress and number < len(folder.pairs):
                progress(number + 1, len(folder.pairs))
    return known if folder.labelled_count else None


def _record(
    name: str,
    area: Area,
    cells: _Cells,
    fingerprints: dict[str, str],
    digests: tuple[str, str],
    landslides: int | None,
    settings: dict[str, Any],
) -> StackRecord:
    folder = cells.folder
    rows, columns = rows_and_columns(len(folder.pairs))
    dates = {"event": area.event, **dict(area.acquired)}
    return StackRecord(
        area=name,
        role=area.role,
        stack_md5=digests[0],
        mask_md5=digests[1],
        sources=fingerprints,
        dates={what: day.isoformat() if day else None for what, day in dates.items()},
        bands=cells.bands,
        height=rows * cells.side,
        width=columns * cells.side,
        landslide_pixels=landslides,
        polygons=None,
        repaired_polygons=None,
        skipped_polygons=None,
        patches=tuple(pair.name for pair in folder.pairs),
        unlabelled_patches=len(folder.pairs) - folder.labelled_count,
        settings=settings,
    )
