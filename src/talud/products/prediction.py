"""Prediction: from a raster and a model to a map."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from talud.engine.planning import default_budget
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
    """Map the landslides of a raster.

    Memory grows with the number of polygons, not with the size of the raster. An interrupted run keeps its finished
    tiles next to `out`. The same call resumes from them and makes the same files as an uninterrupted run (see
    `talud.mapping.journal`).

    Args:
        model: model to run.
        raster: stack, or any raster with named bands that fits the model's contract, as a path or a GDAL name such as
            `/vsicurl/https://…`, `/vsizip/…` or `/vsis3/…`.
        out: folder of the map's files (see `Products`), which are moved there together when all are complete.
        options: options of the map.
        progress: callback that gets the numbers of finished tiles and of all tiles after each batch.

    Returns:
        The figures of the map.

    Raises:
        SourceError: The raster cannot be read.
        MismatchError: The raster does not fit the model's contract.
        ModelError: The network fails.
        OutputError: A file cannot be written, another process makes this map, or an unfinished map with other inputs
            is in the way. An earlier map is not changed.
        ClusterError: The workers cannot be reached, differ from this process, or are lost.
        ParamsError: An option does not suit the raster, or the model was loaded with another provider or precision.
    """
    clock = _Stopwatch()
    _check_opened(model, options)
    check_map_folder(out, [raster, model.path])
    with small_gdal_cache(), open_stack(raster, model.contract) as stack:
        if options.geojson and stack.grid.is_local:
            raise ParamsError(f"{raster}: its local coordinates have no longitude and latitude; omit --geojson")
        check_disk_space(out, stack.grid, options.tta)
        run = _MapRun.of(model, stack, options, Journal.started_tile(out))
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
    """Check that the loaded model suits the options.

    Raises:
        ParamsError: The provider or precision differs.
    """
    runs_on = "cuda" if model.provider == CUDA_PROVIDER else "cpu"
    for name, asked, found in (
        ("provider", options.provider, {"auto", runs_on}),
        ("precision", options.precision, {None, model.contract.derived.precision}),
    ):
        if asked not in found:
            raise ParamsError(f"the {name} is {asked}, but {model.path} is open with another; pass it to load_model")


def _plan_tiles(model: Model, shape: tuple[int, int], options: MapOptions, started: int | None) -> Tiling:
    """Return the tiles of a raster.

    A map that was started with other tiles keeps these if they fit into memory, so that it can be resumed with another
    memory, or on another machine.

    Args:
        model: model to run.
        shape: (height, width) of the raster.
        options: options of the map.
        started: side of the tiles of an interrupted run, if there is one.

    Raises:
        ParamsError: The memory of the options does not suffice.
    """
    if options.tile is not None:
        return model.tiling(shape, options.tile, options.halo)
    budget = options.memory or default_budget()
    if started and model.memory_bytes(kept := model.tiling(shape, started, options.halo)) <= budget:
        return kept
    tiling = model.tiling(shape, None, options.halo, budget)
    needed = model.memory_bytes(tiling)
    if options.memory is not None and needed > options.memory:
        least = ceil(needed / 1e7) * 10
        raise ParamsError(
            f"the memory is {options.memory.human_readable(decimal=True)}, but tiles of {tiling.rows.core} pixels, the "
            f"smallest that are useful with a halo of {tiling.rows.halo} pixels, need {least} MB; use --memory "
            f"{least}MB or more, or set --tile"
        )
    return tiling


@dataclass(frozen=True)
class _MapRun:
    """Run of a prediction: model, raster, tiles and options.

    Attributes:
        model: model to run.
        stack: open raster.
        tiling: tiles of the raster.
        options: options of the map.
        threshold: lowest probability of a landslide pixel.
    """

    model: Model
    stack: StackReader
    tiling: Tiling
    options: MapOptions
    threshold: float

    @classmethod
    def of(cls, model: Model, stack: StackReader, options: MapOptions, started: int | None) -> _MapRun:
        """Plan a run; each patch of a patch stack is one tile.

        Args:
            model: model to run.
            stack: open raster.
            options: options of the map.
            started: side of the tiles of an interrupted run, if there is one.

        Raises:
            ParamsError: A tile size or halo is set for a patch stack, or the memory does not suffice.
        """
        info = stack.info
        threshold = model.contract.measured.threshold if options.threshold is None else options.threshold
        if info.patch is None:
            tiling = _plan_tiles(model, info.grid.shape, options, started)
            return cls(model, stack, tiling, options, threshold)
        if options.tile is not None or options.halo is not None:
            raise ParamsError(
                f"{info.name}: consists of patches of {info.patch} pixels, and each patch is one tile; omit --tile and "
                "--halo"
            )
        return cls(model, stack, model.tiling(info.grid.shape, info.patch, 0), options, threshold)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that the bytes of the map depend on, by name."""
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
        """Executor that computes the tiles."""
        passes = PassOptions(
            self.options.batch or self.model.batch_size(self.tiling, self.options.memory), self.options.tta
        )
        if self.options.workers is None:
            return InProcessExecutor(self.model, self.stack, passes)
        return WorkerExecutor(self.model, self.stack, passes, self.options.workers)

    @property
    def exact_halo(self) -> int:
        """Halo at which the map equals one pass; 0 for patches."""
        return 0 if self.stack.info.patch else self.model.halo

    @property
    def smaller_halo(self) -> int | None:
        """Halo if it is smaller than the exact one, else None."""
        return self.tiling.rows.halo if self.tiling.rows.halo < self.exact_halo else None

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the map's files."""
        lineage = map_record.origin_tags(self.model, self.threshold, self.smaller_halo, self.options.tta)
        return lineage | self.stack.info.provenance


def _make_products(run: _MapRun, journal: Journal, products: Products, clock: _Stopwatch) -> Prediction:
    """Write all files of the map from the finished tiles."""
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
    """Write the polygons as GeoPackage and, if requested, as GeoJSON."""
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
    model, tiling, info, reduced = run.model, run.tiling, run.stack.info, counts.partial
    no_estimate = _no_estimate(run, counts)
    reasons = counts.reasons(model.contract)
    by_frequency = sorted(reasons.items(), key=lambda one: (-counts.unmapped[one[0]], one[1]))
    return Prediction(
        raster=info.name,
        pixels=info.grid.height * info.grid.width,
        not_mapped={words: int(counts.unmapped[code]) for code, words in by_frequency},
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
        memory=model.memory_bytes(tiling),
        arithmetic=model.planner.overhead(tiling),
        tiles=len(tiling),
        skipped=counts.skipped,
        minimum_area_m2=run.options.minimum_area,
        left_out=landslides.left_out,
        smooth=run.options.smooth,
        distances=info.distances,
        tta=run.options.tta,
        estimate=None if no_estimate else _estimate(run, counts),
        no_estimate=no_estimate,
        pixel_size=domain.pixel_size_sentence(info.grid.resolution * info.grid.metres_per_unit, model.contract),
        landslide_share=counts.landslide / max(counts.mapped, 1),
    )


def _no_estimate(run: _MapRun, counts: PixelCounts) -> str:
    """Return the reason for a missing area estimate, or "".

    An estimate requires a map made like the predictions on the validation blocks, with all band groups.
    """
    if run.threshold != run.model.contract.measured.threshold:
        return f"the threshold differs from that of the validation, {run.model.contract.measured.threshold:g}"
    if run.model.contract.input.pixel_sizes:
        return "the model was validated on pixels of several sizes"
    if run.options.tta:
        return "the map is a mean over eight passes, but the model was validated with one"
    if run.model.halo_error(run.tiling) != 0:
        return "the halo is smaller than that of the validation"
    if counts.partial.any():
        return "some pixels are mapped with fewer bands than the model was validated with"
    return why_no_estimate(run.model.contract, counts.mapped)


def _estimate(run: _MapRun, counts: PixelCounts) -> AreaEstimate | None:
    """Estimate the landslide area of the mapped pixels."""
    info = run.stack.info
    square_metres = info.grid.pixel_area * info.grid.crs.linear_units_factor[1] ** 2
    background, verdict = counts.mapped - counts.landslide, domain.overall_verdict(info.distances)
    return estimate_area(run.model.contract, counts.landslide, background, square_metres, verdict)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class _Stopwatch:
    """Stopwatch for the parts of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Record the seconds since the last lap."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
