"""From a model and a raster to a map: its tiles, and the products that are made of them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.errors import OutputError, ParamsError
from talud.files import md5
from talud.inference import coverage, polygons, quicklook, zonal
from talud.inference.journal import Journal
from talud.inference.mapping import finish_tiles
from talud.inference.products import MapRasters, Products
from talud.inference.reader import StackReader, frugal, open_stack
from talud.inference.runtime import Model
from talud.inference.sharding import Workers, finish_shards
from talud.inference.tiling import Tiling

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prediction:
    """What a map came to; `prediction.json` holds the same, and where the model came from.

    Attributes:
        raster: name of the raster's file, without its folders.
        pixels: of the whole raster.
        not_mapped: why pixels are left out, in words → how many are for that reason.
        landslides: their number.
        landslide_area_m2: of all of them.
        threshold: landslide where the probability is at least this.
        provider: the execution provider that ran the network.
        tile: (height, width) of a tile's core.
        window: (height, width) of what the network is given at once.
        halo: pixels of context around a core.
        tiles: number of tiles.
        skipped: tiles without a pixel to map, for which the network did not run.
        minimum_area_m2: of a landslide that counts; 0 where none was set.
        left_out: landslides that are smaller, and neither counted nor among the polygons.
        taken_over: tiles that an earlier run had finished before it was interrupted. The files do not show it.
    """

    raster: str
    pixels: int
    not_mapped: dict[str, int]
    landslides: int
    landslide_area_m2: float
    threshold: float
    provider: str
    tile: tuple[int, int]
    window: tuple[int, int]
    halo: int
    tiles: int
    skipped: int
    minimum_area_m2: float
    left_out: int
    taken_over: int = 0

    @property
    def share_not_mapped(self) -> float:
        """The part of the raster that the map leaves out, 0 to 1."""
        return sum(self.not_mapped.values()) / self.pixels


def predict(
    model: Model,
    raster: str | Path,
    out: Path,
    threshold: float | None = None,
    tile: int | None = None,
    progress: Progress | None = None,
    *,
    minimum_area: float = 0,
    geojson: bool = False,
    workers: Workers | None = None,
) -> Prediction:
    """Map the landslides of a raster; memory does not grow with it, apart from what the polygons need.

    A run that breaks off, however, leaves its finished tiles beside `out`; the same call goes on from them, and makes
    the same files as a run that was not disturbed (see `journal`).

    Args:
        model: to run.
        raster: a stack, or any raster of named bands that fits the model's contract: a path, or whatever else GDAL
            opens, such as `/vsicurl/https://…`, `/vsizip/…` or `/vsis3/…`.
        out: folder of the products (see `Products`); they appear there together, when all are whole.
        threshold: landslide where the probability is at least this. Default: the contract's.
        tile: longest side of a tile's core in pixels. Default: what memory allows. The map is the same.
        progress: told, after each tile, how many are done and how many there are.
        minimum_area: in m²: smaller landslides are left out of the polygons (not of the rasters).
        geojson: whether the landslides are written as GeoJSON too.
        workers: that find the tiles, instead of this process. The map is the same.

    Raises:
        SourceError: the raster cannot be read.
        MismatchError: it does not fit the model's contract.
        ModelError: the network fails.
        OutputError: a product cannot be written, another process makes this map, or one that was begun with something
            else is unfinished; an earlier result is untouched.
        ClusterError: the workers cannot be had, differ from this process, or are lost.
        ParamsError: threshold, tile or minimum area make no sense.
    """
    options = _Options.checked(model, threshold, minimum_area, geojson)
    if tile is not None and tile < 1:
        raise ParamsError(f"the tile is {tile} pixels; it must be at least 1")
    clock = _Clock()
    with frugal(), open_stack(raster, model.contract) as stack:
        tiling = model.tiling(stack.grid.shape, tile)
        with Journal.opened(out, _begun(model, stack, tiling, options)) as journal:
            taken_over = _find(model, raster, stack, tiling, journal, workers, progress)
            clock.lap("tiles")
            products = Products.within(journal.products)
            prediction = _finish(model, stack, tiling, journal, products, options, clock)
            prediction = replace(prediction, taken_over=taken_over)
            _write_json(
                products.timings,
                {
                    "seconds": clock.laps | {"total": round(sum(clock.laps.values()), 3)},
                    "tiles_taken_over": taken_over,
                    "workers": workers,
                },
            )
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
            values = stack.read(window)
            mapped = coverage.blocked(values, model.contract) == 0
            yield np.where(mapped, model.probability(values), np.float32(np.nan))


@dataclass(frozen=True)
class _Options:
    """What a user may choose about the products."""

    threshold: float
    minimum_area: float
    geojson: bool

    @classmethod
    def checked(cls, model: Model, threshold: float | None, minimum_area: float, geojson: bool) -> _Options:
        threshold = model.contract.threshold if threshold is None else threshold
        if not 0 < threshold < 1:
            raise ParamsError(f"the threshold is {threshold:g}; it must lie between 0 and 1")
        if not 0 <= minimum_area < math.inf:
            raise ParamsError(f"the minimum area is {minimum_area:g} m²; it must be 0 or more")
        return cls(threshold, float(minimum_area), geojson)


def _begun(model: Model, stack: StackReader, tiling: Tiling, options: _Options) -> dict[str, Any]:
    """What the bytes of a map depend on, by name."""
    return {
        "talud": version("talud"),
        "ONNX Runtime": onnxruntime.__version__,
        "model": model.title,
        "model file": md5(model.path),
        "provider": model.provider,
        **stack.identity,
        "tile": [tiling.rows.core, tiling.columns.core],
        "halo": tiling.rows.halo,
        "threshold": options.threshold,
        "minimum area": f"{options.minimum_area:g} m²",
        "GeoJSON": "yes" if options.geojson else "no",
    }


def _find(
    model: Model,
    raster: str | Path,
    stack: StackReader,
    tiling: Tiling,
    journal: Journal,
    workers: Workers | None,
    progress: Progress | None,
) -> int:
    """Finish the tiles that are not, here or by workers; how many were."""
    missing = journal.missing(tiling)
    taken_over = len(tiling) - len(missing)

    def tell(done: int) -> None:
        if progress:
            progress(taken_over + done, len(tiling))

    if workers is None:
        finish_tiles(model, stack, missing, journal, tell)
    elif missing:
        finish_shards(model, raster, stack, missing, journal, workers, tell)
    return taken_over


def _finish(
    model: Model,
    stack: StackReader,
    tiling: Tiling,
    journal: Journal,
    products: Products,
    options: _Options,
    clock: _Clock,
) -> Prediction:
    """Make the products from the finished tiles, the same bytes whenever and in how many runs those were found."""
    tags = _lineage(model, options.threshold) | stack.provenance
    with MapRasters.writing(products, stack.grid, options.threshold, tags) as rasters:
        codes, skipped = _fill(rasters, tiling, journal)
    clock.lap("rasters")
    reasons = {int(code): coverage.reason(int(code), model.contract) for code in codes.nonzero()[0] if code}
    landslides, not_mapped = polygons.trace(products.parts, reasons, options.minimum_area)
    origin = {"model": model.name, "version": model.version}
    attributes = zonal.statistics(landslides.outlines, products.probability, stack) | {
        name: np.full(len(landslides.area), value, np.object_) for name, value in origin.items()
    }
    polygons.write(products.polygons, landslides, attributes, not_mapped, stack.grid, tags)
    if options.geojson:
        polygons.write_geojson(products.geojson, landslides, attributes, stack.grid)
    clock.lap("polygons")
    prediction = Prediction(
        raster=stack.name,
        pixels=stack.grid.height * stack.grid.width,
        not_mapped={words: int(codes[code]) for code, words in reasons.items()},
        landslides=len(landslides.area),
        landslide_area_m2=float(landslides.area.sum()),
        threshold=options.threshold,
        provider=model.provider,
        tile=(tiling.rows.core, tiling.columns.core),
        window=tiling.window,
        halo=tiling.rows.halo,
        tiles=len(tiling),
        skipped=skipped,
        minimum_area_m2=options.minimum_area,
        left_out=landslides.left_out,
    )
    quicklook.draw(products.quicklook, stack, landslides, not_mapped, _caption(model, stack, prediction))
    clock.lap("quicklook")
    _write_json(products.record, _record(model, prediction, stack.provenance))
    return prediction


def _fill(rasters: MapRasters, tiling: Tiling, journal: Journal) -> tuple[NDArray[np.int64], int]:
    """Fill the rasters; how many pixels have each code of `coverage`, and how many tiles were skipped."""
    codes, skipped = np.zeros(256, np.int64), 0
    for tile in tiling:
        block = journal.read(tile)
        if block is None:
            raise OutputError(f"{journal.folder}: a finished tile is damaged or gone; is the disk sound?")
        rasters.write(tile.core, block.probability, block.blocked)
        codes += np.bincount(block.blocked.ravel(), minlength=len(codes))
        skipped += bool(block.blocked.all())
    return codes, skipped


def _lineage(model: Model, threshold: float) -> dict[str, str]:
    """Where a map came from, as the tags of its files."""
    contract = model.contract
    return {
        "TALUD_MODEL": model.name,
        "TALUD_VERSION": model.version,
        "TALUD_RUN": contract.run_id,
        "TALUD_DATA_VERSION": contract.data_version,
        "TALUD_COMMIT": contract.commit,
        "TALUD_WEIGHTS": contract.weights,
        "TALUD_THRESHOLD": f"{threshold:g}",
    }


def _caption(model: Model, stack: StackReader, prediction: Prediction) -> quicklook.Caption:
    """The words of the quicklook."""
    tags = stack.provenance
    sar = [tags[tag] for tag in ("TALUD_ACQUIRED_SAR_PRE", "TALUD_ACQUIRED_SAR_POST") if tag in tags]
    dates = {
        "event": tags.get("TALUD_EVENT"),
        "optical image": tags.get("TALUD_ACQUIRED_OPTICAL"),
        "SAR": " and ".join(sar),
    }
    known = ", ".join(f"{name} {day}" for name, day in dates.items() if day)
    shares = [f"{why} {pixels / prediction.pixels:.1%}" for why, pixels in prediction.not_mapped.items()]
    hectares = prediction.landslide_area_m2 / 10_000
    return quicklook.Caption(
        title=f"Landslides in {tags.get('TALUD_AREA', Path(stack.name).stem).replace('_', ' ')}",
        lines=(
            known[:1].upper() + known[1:] if known else "Dates unknown",
            f"Model {model.title}; landslide where the probability is at least {prediction.threshold:g}",
        ),
        warning="SYNTHETIC DATA, no real place" if tags.get("TALUD_SYNTHETIC") == "yes" else "",
        landslides=f"Landslide: {prediction.landslides:,} mapped, {hectares:,.1f} ha",
        not_mapped=f"Not mapped: {prediction.share_not_mapped:.1%} of the raster",
        reasons="Why not mapped: " + "; ".join(shares) if shares else "",
    )


def _record(model: Model, prediction: Prediction, provenance: Mapping[str, str]) -> dict[str, Any]:
    """What prediction.json holds: the same for the same model, raster and options."""
    contract, facts = model.contract, asdict(prediction)
    del facts["taken_over"]
    return {
        "model": {
            "name": model.name,
            "version": model.version,
            "run": contract.run_id,
            "data_version": contract.data_version,
            "commit": contract.commit,
            "weights": contract.weights,
            "bands": contract.band_names,
            "trained_on": contract.areas,
        },
        "talud": version("talud"),
        **facts,
        "share_not_mapped": prediction.share_not_mapped,
        "stack": dict(provenance),
    }


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
