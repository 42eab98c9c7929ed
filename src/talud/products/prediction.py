"""From a model and a raster to a map: its tiles, and the products that are made of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.engine import coverage
from talud.engine.runtime import Model
from talud.engine.session import CUDA
from talud.engine.tiling import Tiling
from talud.errors import OutputError, ParamsError
from talud.files import md5
from talud.mapping import domain
from talud.mapping.journal import Journal
from talud.mapping.options import DEFAULTS, MapOptions
from talud.mapping.reader import StackReader, frugal, open_stack
from talud.mapping.sharding import finish_shards
from talud.mapping.tile_loop import Passes, finish_tiles
from talud.products import polygons, quicklook, record, summary, zonal
from talud.products.area import AreaEstimate, estimate, obstacle
from talud.products.rasters import MapRasters, Products, check_out, check_space
from talud.products.record import Prediction, Reduced
from talud.products.smoothing import smoothed
from talud.progress import Progress


def predict(
    model: Model,
    raster: str | Path,
    out: Path,
    options: MapOptions = DEFAULTS,
    progress: Progress | None = None,
) -> Prediction:
    """Map the landslides of a raster; memory does not grow with it, apart from the polygons.

    An interrupted run leaves its finished tiles beside `out`; the same call resumes from them, and makes the same files
    as a run that was not disturbed (see `journal`).

    Args:
        model: model to run.
        raster: a stack, or any raster of named bands that fits the model's contract: a path, or whatever else GDAL
            opens, such as `/vsicurl/https://…`, `/vsizip/…` or `/vsis3/…`.
        out: folder of the products (see `Products`); they appear there together, when all are whole.
        options: options of the map.
        progress: callback that gets, after each batch of tiles, how many are done and how many there are.

    Raises:
        SourceError: The raster cannot be read.
        MismatchError: The raster does not fit the model's contract.
        ModelError: The network fails.
        OutputError: A product cannot be written, another process makes this map, or one that was begun with something
            else is unfinished; an earlier result is untouched.
        ClusterError: The workers cannot be had, differ from this process, or are lost.
        ParamsError: An option does not suit the raster, or the model is open with another provider or precision.
    """
    clock = _Clock()
    _check_opened(model, options)
    check_out(out, [raster, model.path])
    with frugal(), open_stack(raster, model.contract) as stack:
        if options.geojson and stack.grid.local:
            raise ParamsError(f"{raster}: its coordinates have no longitude and latitude; leave --geojson out")
        check_space(out, stack.grid, options.tta)
        tiling = _tiling(model, stack, options)
        with Journal.opened(out, _begun(model, stack, tiling, options)) as journal:
            taken_over = _find(model, raster, stack, tiling, journal, options, progress)
            clock.lap("tiles")
            products = Products.within(journal.products)
            prediction = _finish(model, stack, tiling, journal, products, options, clock)
            prediction = replace(prediction, taken_over=taken_over, folder=out)
            _write_json(
                products.timings,
                {
                    "seconds": clock.laps | {"total": round(sum(clock.laps.values()), 3)},
                    "tiles_taken_over": taken_over,
                    "workers": options.workers,
                },
            )
            journal.publish()
            products.publish(out)
    return prediction


def probabilities(model: Model, raster: str | Path, windows: Iterable[Window]) -> Iterator[NDArray[np.float32]]:
    """The probabilities of windows of a raster, each read alone: what lies around a window is not seen.

    Args:
        model: to run.
        raster: that fits its contract.
        windows: of whole pixels, inside the raster.

    Yields:
        (height, width) of each window; NaN where it is not mapped.

    Raises:
        SourceError: the raster cannot be read.
        MismatchError: it does not fit the model's contract.
        ModelError: the network fails.
    """
    with open_stack(raster, model.contract) as stack:
        for window in windows:
            yield probability_where_mapped(model, stack.read(window))


def probability_where_mapped(model: Model, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probability over an array of pixels, (height, width); NaN where it is not mapped.

    Args:
        model: to run.
        values: (bands, height, width) in contract order and physical units, NaN where invalid.

    Raises:
        ModelError: the network fails.
    """
    mapped = coverage.blocked(values, model.contract) == 0
    return np.where(mapped, model.probability(values), np.float32(np.nan))


def _tiling(model: Model, stack: StackReader, options: MapOptions) -> Tiling:
    """How a raster is cut; one that consists of patches into these, none of which sees another.

    Raises:
        ParamsError: tile or halo are set for a raster that consists of patches.
    """
    if stack.patch is None:
        return model.tiling(stack.grid.shape, options.tile, options.halo)
    if options.tile is not None or options.halo is not None:
        raise ParamsError(
            f"{stack.name}: consists of patches of {stack.patch} pixels, each of which is a tile of its own; leave "
            "--tile and --halo out"
        )
    return model.tiling(stack.grid.shape, stack.patch, 0)


def _check_opened(model: Model, options: MapOptions) -> None:
    """Check that an open model is of the provider and precision that the options ask for.

    Raises:
        ParamsError: It is not.
    """
    runs_on = "cuda" if model.provider == CUDA else "cpu"
    for name, asked, found in (
        ("provider", options.provider, {"auto", runs_on}),
        ("precision", options.precision, {None, model.contract.derived.precision}),
    ):
        if asked not in found:
            raise ParamsError(f"the {name} is {asked}, but {model.path} is open with another; name it in load_model")


def _threshold(model: Model, options: MapOptions) -> float:
    """Return the probability from which a pixel is a landslide."""
    return model.contract.measured.threshold if options.threshold is None else options.threshold


def _begun(model: Model, stack: StackReader, tiling: Tiling, options: MapOptions) -> dict[str, Any]:
    """What the bytes of a map depend on, by name."""
    return {
        "talud": version("talud"),
        "ONNX Runtime": onnxruntime.__version__,
        "model": model.title,
        "model file": md5(model.path),
        "provider": model.provider,
        **model.rounding,
        **stack.identity,
        "tile": [tiling.rows.core, tiling.columns.core],
        "halo": tiling.rows.halo,
        "threshold": _threshold(model, options),
        "minimum area": f"{options.minimum_area:g} m²",
        "outlines": "smoothed" if options.smooth else "along the pixels",
        "GeoJSON": "yes" if options.geojson else "no",
        "test-time augmentation": "yes" if options.tta else "no",
    }


def _find(
    model: Model,
    raster: str | Path,
    stack: StackReader,
    tiling: Tiling,
    journal: Journal,
    options: MapOptions,
    progress: Progress | None,
) -> int:
    """Finish the tiles that are not, here or by workers; how many were."""
    passes = Passes(options.batch or model.batch(tiling), options.tta)
    missing = journal.missing(tiling)
    taken_over = len(tiling) - len(missing)

    def tell(done: int) -> None:
        if progress:
            progress(taken_over + done, len(tiling))

    if options.workers is None:
        finish_tiles(model, stack, missing, journal, passes, tell)
        model.rest()
    elif missing:
        finish_shards(model, raster, stack, missing, journal, passes, options.workers, tell)
    return taken_over


def _finish(
    model: Model,
    stack: StackReader,
    tiling: Tiling,
    journal: Journal,
    products: Products,
    options: MapOptions,
    clock: _Clock,
) -> Prediction:
    """Make the products from the finished tiles, the same bytes whenever and in how many runs those were found."""
    threshold = _threshold(model, options)
    # A patch has no surroundings: read alone, it is mapped as one pass over all of it maps it.
    exact = 0 if stack.patch else model.halo
    smaller = tiling.rows.halo if tiling.rows.halo < exact else None
    tags = record.lineage(model, threshold, smaller, options.tta) | stack.provenance
    with MapRasters.writing(products, stack.grid, threshold, tags, disagreement=options.tta) as rasters:
        counts = _fill(rasters, tiling, journal)
    codes, reduced = counts.blocked, counts.reduced
    clock.lap("rasters")
    reasons = {int(code): coverage.reason(int(code), model.contract) for code in codes.nonzero()[0] if code}
    landslides, not_mapped = polygons.trace(
        products.parts, products.classes, reasons, options.minimum_area, stack.patch
    )
    disagreement = products.disagreement if options.tta else None
    origin = {"model": model.name, "version": model.version}
    attributes = zonal.statistics(landslides.outlines, products.probability, stack, disagreement) | {
        name: np.full(len(landslides.area), value, np.object_) for name, value in origin.items()
    }
    drawn = (
        replace(landslides, outlines=smoothed(landslides.outlines, stack.grid.resolution))
        if options.smooth
        else landslides
    )
    polygons.write(products.polygons, drawn, attributes, not_mapped, stack.grid, tags)
    if options.geojson:
        polygons.write_geojson(products.geojson, drawn, attributes, stack.grid)
    clock.lap("polygons")
    no_estimate = _no_estimate(model, tiling, options, counts)
    prediction = Prediction(
        raster=stack.name,
        pixels=stack.grid.height * stack.grid.width,
        not_mapped={
            words: int(codes[code]) for code, words in sorted(reasons.items(), key=lambda one: (-codes[one[0]], one[1]))
        },
        reduced=tuple(
            Reduced.of(int(code), int(reduced[code]), model.contract)
            for code in sorted(reduced.nonzero()[0].tolist(), key=lambda code: (-reduced[code], code))
        ),
        landslides=len(landslides.area),
        landslide_area_m2=float(landslides.area.sum()),
        threshold=threshold,
        provider=model.provider,
        tile=(tiling.rows.core, tiling.columns.core),
        window=tiling.window,
        halo=tiling.rows.halo,
        exact_halo=exact,
        halo_error=0.0 if smaller is None else model.halo_error(tiling),
        tiles=len(tiling),
        skipped=counts.skipped,
        minimum_area_m2=options.minimum_area,
        left_out=landslides.left_out,
        smooth=options.smooth,
        distances=stack.distances,
        tta=options.tta,
        estimate=None if no_estimate else _estimate(model, stack, counts),
        no_estimate=no_estimate,
        landslide_share=counts.landslide / max(int(counts.blocked[0]), 1),
    )
    scene = quicklook.scene(stack, landslides, not_mapped)
    quicklook.draw(products.quicklook, scene, record.caption(model, stack, prediction))
    clock.lap("quicklook")
    summary.write(products.summary, summary.Page.of(model, stack, prediction, scene, landslides.area))
    clock.lap("summary")
    _write_json(products.record, record.content(model, prediction, stack.provenance))
    return prediction


@dataclass(frozen=True)
class _Counts:
    """What the tiles hold.

    Attributes:
        blocked: how many pixels have each code of `coverage.Coverage.blocked`.
        reduced: likewise; of these, 0 is not counted.
        landslide: pixels that are landslide.
        skipped: tiles without a pixel to map.
    """

    blocked: NDArray[np.int64]
    reduced: NDArray[np.int64]
    landslide: int
    skipped: int


def _no_estimate(model: Model, tiling: Tiling, options: MapOptions, counts: _Counts) -> str:
    """Return the reason for a missing estimate of the landslide area.

    The text is empty if there is an estimate.

    The map must be of the kind that the contract's counts are of, with all groups.
    """
    if _threshold(model, options) != model.contract.measured.threshold:
        return f"the threshold is not that of the model's validation, {model.contract.measured.threshold:g}"
    if options.tta:
        return "the model was validated in one pass, and the map is a mean over eight"
    if model.halo_error(tiling) != 0:
        return "the halo is smaller than that of the model's validation"
    if counts.reduced.any():
        return "parts are mapped with fewer bands than the model was validated with"
    return obstacle(model.contract, int(counts.blocked[0]))


def _estimate(model: Model, stack: StackReader, counts: _Counts) -> AreaEstimate | None:
    """Return the estimated landslide area of the mapped pixels."""
    background = int(counts.blocked[0]) - counts.landslide
    square_metres = stack.grid.pixel_area * stack.grid.crs.linear_units_factor[1] ** 2
    return estimate(model.contract, counts.landslide, background, square_metres, domain.verdict(stack.distances))


def _fill(rasters: MapRasters, tiling: Tiling, journal: Journal) -> _Counts:
    """Fill the rasters, and count what they hold."""
    codes, reduced = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64)
    landslide = skipped = 0
    for tile in tiling:
        block = journal.read(tile)
        if block is None:
            raise OutputError(f"{journal.folder}: a finished tile is damaged or gone; is the disk sound?")
        landslide += rasters.write(Window(*tile.core), block.probability, block.blocked, block.disagreement)
        codes += np.bincount(block.blocked.ravel(), minlength=len(codes))
        skipped += bool(block.blocked.all())
        if block.reduced is not None:
            reduced += np.bincount(block.reduced.ravel(), minlength=len(reduced))
    reduced[0] = 0
    return _Counts(codes, reduced, landslide, skipped)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class _Clock:
    """How many seconds each part of a run took, and all of them."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Note the seconds since the lap before."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
