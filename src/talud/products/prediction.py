"""Maps: from a model and a raster to the files of a map."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from talud.engine.runtime import Model
from talud.engine.session import CUDA_PROVIDER
from talud.engine.tiling import Tiling
from talud.errors import ParamsError
from talud.files import md5
from talud.mapping import domain
from talud.mapping.journal import Journal
from talud.mapping.options import DEFAULT_OPTIONS, MapOptions
from talud.mapping.reader import StackReader, open_stack, small_gdal_cache
from talud.mapping.tiles import Executor, InProcessExecutor, PassOptions, compute_missing_tiles, send_to_sink
from talud.mapping.workers import WorkerExecutor
from talud.products import map_record, polygons, quicklook, summary
from talud.products.area_estimate import AreaEstimate, estimate_area, why_no_estimate
from talud.products.map_record import Prediction, ReducedPixels
from talud.products.polygons import Landslides, NotMapped
from talud.products.rasters import MapRasters, PixelCounts, Products, check_disk_space, check_map_folder
from talud.progress import Progress


def predict(
    model: Model,
    raster: str | Path,
    out: Path,
    options: MapOptions = DEFAULT_OPTIONS,
    progress: Progress | None = None,
) -> Prediction:
    """Map the landslides of a raster into a folder.

    Memory does not grow with the raster, apart from the polygons. An interrupted run leaves its finished tiles
    beside `out`; the same call resumes from them, and makes the same files as a run that was not disturbed (see
    `journal`).

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
    clock = _Stopwatch()
    _check_opened(model, options)
    check_map_folder(out, [raster, model.path])
    with small_gdal_cache(), open_stack(raster, model.contract) as stack:
        if options.geojson and stack.grid.is_local:
            raise ParamsError(f"{raster}: its coordinates have no longitude and latitude; leave --geojson out")
        check_disk_space(out, stack.grid, options.tta)
        run = _MapRun.of(model, stack, options)
        with Journal.open(out, run.facts) as journal:
            taken_over = compute_missing_tiles(run.tiling, journal, run.executor, progress)
            clock.lap("tiles")
            products = Products.within(journal.products)
            prediction = replace(_make_products(run, journal, products, clock), taken_over=taken_over, folder=out)
            timings = {
                "seconds": clock.laps | {"total": round(sum(clock.laps.values()), 3)},
                "tiles_taken_over": taken_over,
                "workers": options.workers,
            }
            _write_json(products.timings, timings)
            journal.mark_publishing()
            products.publish(out)
    return prediction


def _check_opened(model: Model, options: MapOptions) -> None:
    """Check that a model is open with the provider and precision of the options.

    Raises:
        ParamsError: It is not.
    """
    runs_on = "cuda" if model.provider == CUDA_PROVIDER else "cpu"
    for name, asked, found in (
        ("provider", options.provider, {"auto", runs_on}),
        ("precision", options.precision, {None, model.contract.derived.precision}),
    ):
        if asked not in found:
            raise ParamsError(f"the {name} is {asked}, but {model.path} is open with another; name it in load_model")


@dataclass(frozen=True)
class _MapRun:
    """Map in the making: its model, its raster, and its options with their defaults.

    Attributes:
        model: model to run.
        stack: the raster, open.
        tiling: tiles of the raster.
        options: options of the map.
        threshold: probability from which a pixel is a landslide.
    """

    model: Model
    stack: StackReader
    tiling: Tiling
    options: MapOptions
    threshold: float

    @classmethod
    def of(cls, model: Model, stack: StackReader, options: MapOptions) -> _MapRun:
        """Plan a map; a raster that consists of patches is cut into these.

        Raises:
            ParamsError: Tile or halo are set for a raster that consists of patches.
        """
        info = stack.info
        threshold = model.contract.measured.threshold if options.threshold is None else options.threshold
        if info.patch is None:
            return cls(model, stack, model.tiling(info.grid.shape, options.tile, options.halo), options, threshold)
        if options.tile is not None or options.halo is not None:
            raise ParamsError(
                f"{info.name}: consists of patches of {info.patch} pixels, each of which is a tile of its own; leave "
                "--tile and --halo out"
            )
        return cls(model, stack, model.tiling(info.grid.shape, info.patch, 0), options, threshold)

    @property
    def facts(self) -> dict[str, Any]:
        """Return the facts that the bytes of the map depend on, by name."""
        options = self.options
        return {
            "talud": version("talud"),
            "ONNX Runtime": onnxruntime.__version__,
            "model": self.model.title,
            "model file": md5(self.model.path),
            "provider": self.model.provider,
            **self.model.numeric_environment,
            **self.stack.info.identity,
            "tile": [self.tiling.rows.core, self.tiling.columns.core],
            "halo": self.tiling.rows.halo,
            "threshold": self.threshold,
            "minimum area": f"{options.minimum_area:g} m²",
            "outlines": "smoothed" if options.smooth else "along the pixels",
            "GeoJSON": "yes" if options.geojson else "no",
            "test-time augmentation": "yes" if options.tta else "no",
        }

    @property
    def executor(self) -> Executor:
        """Return the executor that computes the tiles."""
        passes = PassOptions(self.options.batch or self.model.batch_size(self.tiling), self.options.tta)
        if self.options.workers is None:
            return InProcessExecutor(self.model, self.stack, passes)
        return WorkerExecutor(self.model, self.stack, passes, self.options.workers)

    @property
    def exact_halo(self) -> int:
        """Return the halo with which the map equals one pass; a patch has no surroundings."""
        return 0 if self.stack.info.patch else self.model.halo

    @property
    def smaller_halo(self) -> int | None:
        """Return the halo if it is smaller than the exact one."""
        return self.tiling.rows.halo if self.tiling.rows.halo < self.exact_halo else None

    @property
    def tags(self) -> dict[str, str]:
        """Return the tags of the map's files."""
        lineage = map_record.origin_tags(self.model, self.threshold, self.smaller_halo, self.options.tta)
        return lineage | self.stack.info.provenance


def _make_products(run: _MapRun, journal: Journal, products: Products, clock: _Stopwatch) -> Prediction:
    """Make the products of the finished tiles."""
    model, info, tta = run.model, run.stack.info, run.options.tta
    with MapRasters.writing(products, info.grid, run.threshold, run.tags, disagreement=tta) as rasters:
        send_to_sink(run.tiling, journal, rasters)
    clock.lap("rasters")
    reasons = rasters.counts.reasons(model.contract)
    landslides, not_mapped = polygons.trace_polygons(
        products.parts, products.classes, reasons, run.options.minimum_area, info.patch
    )
    _write_polygons(run, products, landslides, not_mapped)
    clock.lap("polygons")
    prediction = _summarise(run, rasters.counts, landslides)
    rendered = quicklook.render(run.stack, landslides, not_mapped)
    quicklook.write(products.quicklook, rendered, map_record.caption(model, info, prediction))
    clock.lap("quicklook")
    summary.write(products.summary, summary.SummaryPage.of(model, info, prediction, rendered, landslides.area))
    clock.lap("summary")
    _write_json(products.record, map_record.content(model, prediction, info.provenance))
    return prediction


def _write_polygons(run: _MapRun, products: Products, landslides: Landslides, not_mapped: NotMapped) -> None:
    """Write the polygons with their attributes as GeoPackage, and GeoJSON if asked for."""
    grid, outlines = run.stack.info.grid, landslides.outlines
    disagreement = products.disagreement if run.options.tta else None
    attributes = polygons.zonal_statistics(outlines, products.probability, run.stack, disagreement) | {
        name: np.full(len(landslides.area), value, np.object_)
        for name, value in (("model", run.model.name), ("version", run.model.version))
    }
    if run.options.smooth:
        landslides = replace(landslides, outlines=polygons.smooth_outlines(outlines, grid.resolution))
    polygons.write_geopackage(products.polygons, landslides, attributes, not_mapped, grid, run.tags)
    if run.options.geojson:
        polygons.write_geojson(products.geojson, landslides, attributes, grid)


def _summarise(run: _MapRun, counts: PixelCounts, landslides: Landslides) -> Prediction:
    """Return the figures of a map."""
    model, tiling, info, reduced = run.model, run.tiling, run.stack.info, counts.reduced
    no_estimate = _no_estimate(run, counts)
    reasons = counts.reasons(model.contract)
    by_frequency = sorted(reasons.items(), key=lambda one: (-counts.blocked[one[0]], one[1]))
    return Prediction(
        raster=info.name,
        pixels=info.grid.height * info.grid.width,
        not_mapped={words: int(counts.blocked[code]) for code, words in by_frequency},
        reduced=tuple(
            ReducedPixels.of(code, int(reduced[code]), model.contract)
            for code in sorted(reduced.nonzero()[0].tolist(), key=lambda code: (-reduced[code], code))
        ),
        landslides=len(landslides.area),
        landslide_area_m2=float(landslides.area.sum()),
        threshold=run.threshold,
        provider=model.provider,
        tile=(tiling.rows.core, tiling.columns.core),
        window=tiling.window,
        halo=tiling.rows.halo,
        exact_halo=run.exact_halo,
        halo_error=0.0 if run.smaller_halo is None else model.halo_error(tiling),
        tiles=len(tiling),
        skipped=counts.skipped,
        minimum_area_m2=run.options.minimum_area,
        left_out=landslides.left_out,
        smooth=run.options.smooth,
        distances=info.distances,
        tta=run.options.tta,
        estimate=None if no_estimate else _estimate(run, counts),
        no_estimate=no_estimate,
        landslide_share=counts.landslide / max(counts.mapped, 1),
    )


def _no_estimate(run: _MapRun, counts: PixelCounts) -> str:
    """Return the reason for a missing estimate of the landslide area.

    The text is empty if there is an estimate: the map must be of the kind that the contract's counts are of, with all
    groups.
    """
    if run.threshold != run.model.contract.measured.threshold:
        return f"the threshold is not that of the model's validation, {run.model.contract.measured.threshold:g}"
    if run.options.tta:
        return "the model was validated in one pass, and the map is a mean over eight"
    if run.model.halo_error(run.tiling) != 0:
        return "the halo is smaller than that of the model's validation"
    if counts.reduced.any():
        return "parts are mapped with fewer bands than the model was validated with"
    return why_no_estimate(run.model.contract, counts.mapped)


def _estimate(run: _MapRun, counts: PixelCounts) -> AreaEstimate | None:
    """Return the estimated landslide area of the mapped pixels."""
    info = run.stack.info
    square_metres = info.grid.pixel_area * info.grid.crs.linear_units_factor[1] ** 2
    background, verdict = counts.mapped - counts.landslide, domain.overall_verdict(info.distances)
    return estimate_area(run.model.contract, counts.landslide, background, square_metres, verdict)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class _Stopwatch:
    """Clock that notes the seconds of each part of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Note the seconds since the lap before."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
