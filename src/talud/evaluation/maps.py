"""The maps of an area as the report shows them: pictures, outlines and panels for the viewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import rasterio.features
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader

from talud.bands import Group, band
from talud.data.patches import split
from talud.data.record import current_stack
from talud.evaluation import figures
from talud.grid import Grid
from talud.metrics import LANDSLIDE, UNKNOWN
from talud.project import Project
from talud.raster import open_raster

Box = tuple[float, float, float, float]

LONGEST = 1200  # pixels a side of a picture; a larger area is shown coarser, and the page says so


@dataclass(frozen=True)
class Panel:
    """One map: the pictures that lie on one another, bottom first, by name."""

    title: str
    caption: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Viewer:
    """The panels of an area, which zoom and move together.

    Attributes:
        width, height: of every picture, in pixels.
        metres: the side of such a pixel on the ground.
        images: name → data URI.
        outlines: the landslides of the inventory as SVG path data, in pixels.
        places: (left, top, right, bottom) of each landslide of the inventory in pixels, the largest first.
        blocks: (left, top, right, bottom) of each test block of a training area in pixels.
        comparison: the panels of what was seen and what is known.
        results: band set → its panels.
    """

    area: str
    width: int
    height: int
    metres: float
    reduced: bool
    images: dict[str, str]
    outlines: str
    places: list[Box]
    blocks: list[Box]
    comparison: list[Panel]
    results: dict[str, list[Panel]]

    @property
    def aspect(self) -> float:
        """Width over height of a panel; the map of a long, thin area does not fill it."""
        return min(max(self.width / self.height, 0.7), 2.0)


def view(project: Project, area: str, band_sets: Sequence[str]) -> Viewer:
    """Read the maps of an area.

    Raises:
        SourceError: one of its rasters is missing or cannot be read.
    """
    with open_raster(current_stack(project, area)) as stack:
        grid = Grid.of(stack)
        shape = _picture_shape(grid)
        title, caption, images = _base(stack, shape)
    comparison = [Panel(title, caption, ("base",))]
    outlines, places = "", list[Box]()
    with open_raster(project.mask(area)) as mask:
        truth = _read_classes(mask, shape)
    if (truth != UNKNOWN).any():
        images["inventory"] = figures.inventory(truth)
        outlines, places = _landslides(truth)
        comparison.append(Panel("Inventory", "as digitised", ("grey", "inventory")))
    results = {}
    for band_set in band_sets:
        pictures = _pictures(project, area, band_set, shape)
        images |= {f"{name}-{band_set}": picture for name, picture in pictures.items()}
        results[band_set] = [
            Panel(*_PANELS[name], (*(() if name == "probability" else ("grey",)), f"{name}-{band_set}"))
            for name in pictures
        ]
    height, width = shape
    metres = grid.resolution * grid.width / width
    return Viewer(
        area=area,
        width=width,
        height=height,
        metres=metres,
        reduced=shape != grid.shape,
        images=images,
        outlines=outlines,
        places=places,
        blocks=_test_blocks(project, area, width / grid.width),
        comparison=comparison,
        results=results,
    )


_PANELS = {
    "probability": ("Probability", "of a landslide, by pixel"),
    "landslides": ("Landslides", "at or above the threshold"),
    "outcome": ("Four classes", "map against inventory"),
}


def _picture_shape(grid: Grid) -> tuple[int, int]:
    scale = min(1.0, LONGEST / max(grid.shape))
    return max(1, round(grid.height * scale)), max(1, round(grid.width * scale))


def _base(stack: DatasetReader, shape: tuple[int, int]) -> tuple[str, str, dict[str, str]]:
    """Title, caption and pictures of what the area looks like: optical where there is such, else slope."""
    names = [str(name) for name in stack.descriptions]
    optical = [name for name in names if band(name).group is Group.OPTICAL]
    natural = ["red", "green", "blue"]
    shown = natural if set(natural) <= set(optical) else (optical * 3)[:3]
    if not shown and "slope" in names:
        slope = _read(stack, [names.index("slope") + 1], shape, Resampling.average)[0]
        picture = figures.relief(slope)
        return "Slope", "the steeper, the darker", {"base": picture, "grey": picture}
    shown = shown or [names[0]] * 3
    bands = _read(stack, [names.index(name) + 1 for name in shown], shape, Resampling.average)
    title = "Optical image" if optical else names[0]
    images = {"base": figures.photograph(bands), "grey": figures.photograph(bands, grey=True)}
    return title, f"{', '.join(dict.fromkeys(shown))}, stretched", images


def _pictures(project: Project, area: str, band_set: str, shape: tuple[int, int]) -> dict[str, str]:
    folder = project.prediction(band_set, area)
    if not (folder / "landslides.tif").is_file():
        return {}
    with open_raster(folder / "probability.tif") as raster:
        pictures = {"probability": figures.probability(_read(raster, [1], shape, Resampling.average)[0])}
    with open_raster(folder / "landslides.tif") as raster:
        pictures["landslides"] = figures.landslides(_read_classes(raster, shape))
    if project.outcome(band_set, area).is_file():
        with open_raster(project.outcome(band_set, area)) as raster:
            pictures["outcome"] = figures.outcome(_read_classes(raster, shape))
    return pictures


def _test_blocks(project: Project, area: str, scale: float) -> list[Box]:
    if project.params.area(area).role != "training":
        return []
    blocks = split(project.mask(area), project.params.split, project.params.seed)
    windows = [block.window for block in blocks if block.part == "test"]
    return [
        (scale * left, scale * top, scale * (left + width), scale * (top + height))
        for left, top, width, height in (window.flatten() for window in windows)
    ]


def _read(dataset: DatasetReader, indexes: list[int], shape: tuple[int, int], how: Resampling) -> NDArray[np.float32]:
    """Bands at a picture's shape, float32 (bands, height, width), NaN where there is no data."""
    bands = dataset.read(indexes, out_shape=(len(indexes), *shape), resampling=how, masked=True)
    return np.asarray(bands.astype(np.float32).filled(np.nan))


def _read_classes(dataset: DatasetReader, shape: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(dataset.read(1, out_shape=shape, resampling=Resampling.nearest))


def _landslides(truth: NDArray[np.uint8]) -> tuple[str, list[Box]]:
    """The outlines of the landslides as one SVG path, and their bounding boxes, the largest first."""
    paths, boxes = [], []
    for shape, _ in rasterio.features.shapes(truth, mask=truth == LANDSLIDE, connectivity=8):
        rings = [[(int(x), int(y)) for x, y in ring[:-1]] for ring in shape["coordinates"]]
        paths += ["M" + "L".join(f"{x} {y}" for x, y in ring) + "Z" for ring in rings]
        columns, rows = zip(*rings[0], strict=True)
        boxes.append((min(columns), min(rows), max(columns), max(rows)))
    return "".join(paths), sorted(boxes, key=lambda box: -(box[2] - box[0]) * (box[3] - box[1]))
