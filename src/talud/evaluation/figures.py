"""Pictures and diagrams of the report as data URIs.

The reliability diagram is that of A. Niculescu-Mizil and R. Caruana, Predicting Good Probabilities with Supervised
Learning, ICML 2005.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import rasterio.features
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import Resampling
from rasterio.io import DatasetReader

from talud.bands import Group, band_named
from talud.confusion_map import NOT_COMPARED, NOT_MAPPED, PIXEL_CLASS_COLOURS, PixelClass
from talud.data.stack_record import check_current_stack
from talud.evaluation.results import Reliability
from talud.grid import Grid
from talud.imaging import GAMMA, data_uri, diagonal_stripes, percentile_limits, rescale
from talud.measurement.sites import Site
from talud.metrics import CALIBRATION_BINS, LANDSLIDE, UNKNOWN
from talud.products import map_record
from talud.products.adaptation_record import AdaptationRecord
from talud.project import Project, adapted_name
from talud.raster import open_raster

Colour = tuple[int, int, int, int]

INVENTORY_COLOUR = (255, 221, 51, 255)
MAPPED_COLOUR = (213, 70, 0, 255)
_TRANSPARENT = (0, 0, 0, 0)
# Classes and colours of the grey stripes over pixels that are not mapped.
_HATCHING = {252: (196, 196, 202, 255), 253: (222, 222, 226, 255)}
# Steps of the colour ramp of probabilities.
_PROBABILITY_LEVELS = 100
PROBABILITY_RAMP = tuple(
    cast(Colour, tuple(round(255 * part) for part in mpl.colormaps["magma_r"](level / _PROBABILITY_LEVELS)))
    for level in range(_PROBABILITY_LEVELS + 1)
)


def draw_image(bands: NDArray[np.float32], *, grey: bool = False) -> str:
    """Draw three bands as a photograph.

    Each band is stretched between its 1st and 99th percentile. Pixels that are NaN in any band are transparent.

    Args:
        bands: float32 (3, height, width).
        grey: draw in pale grey, as a background for classes.
    """
    valid = np.asarray(np.isfinite(bands).all(axis=0))
    colours = np.where(valid, [rescale(band, percentile_limits(band[valid], (1, 99))) ** GAMMA for band in bands], 0.0)
    if grey:
        luminance = np.tensordot(np.array([0.299, 0.587, 0.114]), colours, axes=1)
        colours = np.stack([0.3 + 0.55 * luminance] * 3)
    return _encode_photo(colours, valid)


def draw_slope(slope: NDArray[np.float32]) -> str:
    """Draw slope, darker where steeper.

    Args:
        slope: degrees, (height, width); NaN is transparent.
    """
    valid = np.isfinite(slope)
    light = 0.95 - 0.65 * np.clip(np.nan_to_num(slope) / 60, 0, 1)
    return _encode_photo(np.stack([light] * 3), valid)


def draw_probability(levels: NDArray[np.float32]) -> str:
    """Draw probabilities on a ramp from light to dark.

    Args:
        levels: probabilities, (height, width); NaN is hatched.
    """
    mapped = np.isfinite(levels)
    classes = (
        np.where(mapped, np.nan_to_num(levels) * _PROBABILITY_LEVELS, 0)
        .round()
        .clip(0, _PROBABILITY_LEVELS)
        .astype(np.uint8)
    )
    return _encode_classes(_hatched(classes, ~mapped), dict(enumerate(PROBABILITY_RAMP)) | _HATCHING)


def draw_landslides(mapped: NDArray[np.uint8]) -> str:
    """Draw a class map.

    Args:
        mapped: 1 landslide; 0 background, transparent; 255 not mapped, hatched.
    """
    return _encode_classes(
        _hatched(mapped, mapped == NOT_MAPPED), {0: _TRANSPARENT, LANDSLIDE: MAPPED_COLOUR} | _HATCHING
    )


def draw_inventory(truth: NDArray[np.uint8]) -> str:
    """Draw an inventory mask.

    Args:
        truth: 1 landslide; 0 background, transparent; 255 unknown, hatched.
    """
    return _encode_classes(
        _hatched(truth, truth == UNKNOWN), {0: _TRANSPARENT, LANDSLIDE: INVENTORY_COLOUR} | _HATCHING
    )


def draw_confusion_map(classes: NDArray[np.uint8]) -> str:
    """Draw a confusion map.

    Args:
        classes: `PixelClass` values; true negatives are transparent, 255 is hatched.
    """
    colours = PIXEL_CLASS_COLOURS | {PixelClass.TRUE_NEGATIVE: _TRANSPARENT}
    return _encode_classes(_hatched(classes, classes == NOT_COMPARED), colours | _HATCHING)


def _hatched(classes: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Fill pixels without a value with stripes."""
    stripes = np.where(diagonal_stripes(classes.shape, 16, 5), min(_HATCHING), max(_HATCHING)).astype(np.uint8)
    return np.where(where, stripes, classes)


def _encode_classes(classes: NDArray[np.uint8], colours: Mapping[int, Colour]) -> str:
    """Encode uint8 classes (height, width) in exact colours."""
    palette = np.array([colours.get(value, _TRANSPARENT) for value in range(256)], dtype=np.uint8)
    return _webp_uri(palette[classes], lossless=True)


def _encode_photo(colours: NDArray[np.floating[Any]], valid: NDArray[np.bool_]) -> str:
    """Encode colours (3, height, width), 0 to 1, as a lossy picture."""
    pixels = np.concatenate([colours, valid[np.newaxis]]) * 255
    return _webp_uri(np.moveaxis(pixels.round().astype(np.uint8), 0, -1), lossless=False)


def _webp_uri(pixels: NDArray[np.uint8], *, lossless: bool) -> str:
    """Encode RGBA pixels (height, width, 4) as WebP in a data URI."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "WEBP", lossless=lossless, quality=82, method=4)
    return data_uri(stream.getvalue(), "image/webp")


Box = tuple[float, float, float, float]

# Longest side of a picture. Larger areas are shown at a lower resolution, which the page states.
MAX_PICTURE_SIDE_PIXELS = 1200


@dataclass(frozen=True)
class Panel:
    """Map panel of a viewer.

    Attributes:
        title: title of the panel.
        caption: caption of the panel.
        layers: names of its pictures, bottom first.
    """

    title: str
    caption: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Viewer:
    """Map panels of an area, which zoom and move together.

    Attributes:
        area: name of the area.
        width: width of every picture in pixels.
        height: height of every picture in pixels.
        metres: side of a picture's pixel on the ground.
        reduced: True if pictures have a lower resolution than the rasters.
        images: name → data URI.
        outlines: landslides of the inventory as SVG path data, in pixels.
        places: (left, top, right, bottom) of each landslide of the inventory in pixels, largest first.
        blocks: (left, top, right, bottom) of each test block of a training area in pixels.
        comparison: panels of the image and the inventory.
        results: band set, or band set with an adapted model → its panels.
        notices: the same → warnings about the map.
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
    notices: dict[str, list[str]]

    @property
    def aspect(self) -> float:
        """Width over height of a panel, limited to 0.7 to 2."""
        return min(max(self.width / self.height, 0.7), 2.0)


def area_viewer(project: Project, area: str, band_sets: Sequence[str]) -> Viewer:
    """Draw the pictures of an area for the report.

    Raises:
        SourceError: a raster is missing or cannot be read.
    """
    with open_raster(check_current_stack(project, area)) as stack:
        grid = Grid.of(stack)
        shape = _picture_shape(grid)
        title, caption, images = _draw_background(stack, shape)
    comparison = [Panel(title, caption, ("base",))]
    outlines, places = "", list[Box]()
    with open_raster(project.mask(area)) as mask:
        truth = _read_classes(mask, shape)
    if (truth != UNKNOWN).any():
        images["inventory"] = draw_inventory(truth)
        outlines, places = _outline_landslides(truth)
        comparison.append(Panel("Inventory", "as digitised", ("grey", "inventory")))
    results, notices = {}, {}
    for row, band_set, mapped in _maps_of(project, area, band_sets):
        pictures = _draw_results(project, mapped, band_set, shape)
        images |= {f"{name}-{row}": picture for name, picture in pictures.items()}
        results[row] = [
            Panel(*_PANELS[name], (*(() if name == "probability" else ("grey",)), f"{name}-{row}")) for name in pictures
        ]
        notices[row] = map_record.read_notices(project.prediction(band_set, mapped)) if pictures else []
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
        notices=notices,
    )


def _maps_of(project: Project, area: str, band_sets: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield title, band set and name of each map of an area."""
    for band_set in band_sets:
        yield band_set, band_set, area
        record = AdaptationRecord.read_all(project, band_set).get(area)
        if record and record.adapted:
            yield adapted_title(band_set), band_set, adapted_name(area)


def adapted_title(band_set: str) -> str:
    """Return the title of the results of a band set's adapted model."""
    return f"{band_set}, adapted"


_PANELS = {
    "probability": ("Probability", "of a landslide, by pixel"),
    "landslides": ("Landslides", "at or above the threshold"),
    "outcome": ("Four classes", "map against inventory"),
}


def _picture_shape(grid: Grid) -> tuple[int, int]:
    scale = min(1.0, MAX_PICTURE_SIDE_PIXELS / max(grid.shape))
    return max(1, round(grid.height * scale)), max(1, round(grid.width * scale))


def _draw_background(stack: DatasetReader, shape: tuple[int, int]) -> tuple[str, str, dict[str, str]]:
    """Draw the background of an area: optical bands, else slope.

    Returns:
        Title, caption, and pictures by name.
    """
    names = [str(name) for name in stack.descriptions]
    optical = [name for name in names if band_named(name).group is Group.OPTICAL]
    natural = ["red", "green", "blue"]
    shown = natural if set(natural) <= set(optical) else (optical * 3)[:3]
    if not shown and "slope" in names:
        slope = _read(stack, [names.index("slope") + 1], shape, Resampling.average)[0]
        picture = draw_slope(slope)
        return "Slope", "the steeper, the darker", {"base": picture, "grey": picture}
    shown = shown or [names[0]] * 3
    bands = _read(stack, [names.index(name) + 1 for name in shown], shape, Resampling.average)
    title = "Optical image" if optical else names[0]
    images = {"base": draw_image(bands), "grey": draw_image(bands, grey=True)}
    return title, f"{', '.join(dict.fromkeys(shown))}, stretched", images


def _draw_results(project: Project, area: str, band_set: str, shape: tuple[int, int]) -> dict[str, str]:
    folder = project.prediction(band_set, area)
    if not (folder / "landslides.tif").is_file():
        return {}
    with open_raster(folder / "probability.tif") as raster:
        pictures = {"probability": draw_probability(_read(raster, [1], shape, Resampling.average)[0])}
    with open_raster(folder / "landslides.tif") as raster:
        pictures["landslides"] = draw_landslides(_read_classes(raster, shape))
    if project.confusion_map(band_set, area).is_file():
        with open_raster(project.confusion_map(band_set, area)) as raster:
            pictures["outcome"] = draw_confusion_map(_read_classes(raster, shape))
    return pictures


def _test_blocks(project: Project, area: str, scale: float) -> list[Box]:
    if project.params.area(area).role != "training":
        return []
    windows = Site.of(project, area).windows("test")
    return [
        (scale * left, scale * top, scale * (left + width), scale * (top + height))
        for left, top, width, height in (window.flatten() for window in windows)
    ]


def _read(dataset: DatasetReader, indexes: list[int], shape: tuple[int, int], how: Resampling) -> NDArray[np.float32]:
    """Read bands at a picture's shape, float32 (bands, height, width).

    Pixels without data are NaN.
    """
    bands = dataset.read(indexes, out_shape=(len(indexes), *shape), resampling=how, masked=True)
    return np.asarray(bands.astype(np.float32).filled(np.nan))


def _read_classes(dataset: DatasetReader, shape: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(dataset.read(1, out_shape=shape, resampling=Resampling.nearest))


def _outline_landslides(truth: NDArray[np.uint8]) -> tuple[str, list[Box]]:
    """Return an SVG path of all landslides, and their boxes."""
    paths, boxes = [], []
    for shape, _ in rasterio.features.shapes(truth, mask=truth == LANDSLIDE, connectivity=8):
        rings = [[(int(x), int(y)) for x, y in ring[:-1]] for ring in shape["coordinates"]]
        paths += ["M" + "L".join(f"{x} {y}" for x, y in ring) + "Z" for ring in rings]
        columns, rows = zip(*rings[0], strict=True)
        boxes.append((min(columns), min(rows), max(columns), max(rows)))
    return "".join(paths), sorted(boxes, key=lambda box: -(box[2] - box[0]) * (box[3] - box[1]))


# Palette of Okabe and Ito (2008): the first colour for the test blocks, the others for areas, repeated as needed.
_TEST_COLOUR, *_AREA_COLOURS = "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#e69f00"


def reliability_diagram(places: Mapping[str, Reliability]) -> str:
    """Draw the reliability diagram as a PNG in a data URI.

    Equal numbers give equal bytes.

    Args:
        places: reliability by set of pixels: "test" for the test blocks (solid line), areas (dashed lines).
    """
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 9}):
        figure = Figure(figsize=(4.2, 5.6), dpi=160, facecolor="white", layout="constrained")
        curves, shares = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
        curves.plot([0, 1], [0, 1], color="#8a938e", linewidth=0.9)
        colours = dict(
            zip((place for place in places if place != "test"), itertools.cycle(_AREA_COLOURS), strict=False)
        )
        for place, reliability in places.items():
            home = place == "test"
            style = {"color": colours.get(place, _TEST_COLOUR), "linewidth": 1.6, "linestyle": "-" if home else "--"}
            points = np.array(reliability.points()).reshape(-1, 2)
            label = f"{'test blocks' if home else place} (error {reliability.expected_calibration_error:.3f})"
            curves.plot(*points.T, marker="o", markersize=3.5, label=label, **style)
            share = np.array(reliability.pixels) / max(sum(reliability.pixels), 1)
            shares.stairs(share, np.linspace(0, 1, CALIBRATION_BINS + 1), **style)
        curves.set(xlim=(0, 1), ylim=(0, 1), ylabel="Share of landslide")
        figure.legend(loc="outside upper left", frameon=False, handlelength=2.4)
        shares.set(yscale="log", ylim=(1e-4, 1), xlabel="Probability", ylabel="Share of pixels")
        for axes in (curves, shares):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#e4e7e2", linewidth=0.6)
            axes.set_axisbelow(True)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
    return data_uri(stream.getvalue(), "image/png")
