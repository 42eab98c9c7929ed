"""From a model and a raster to a map: tiles read ahead, run, and written window by window."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

import talud
from talud.errors import ParamsError
from talud.inference import coverage, polygons, quicklook
from talud.inference.products import MapRasters, Products
from talud.inference.reader import StackReader, open_stack
from talud.inference.runtime import Model
from talud.inference.tiling import Tiling

CACHE = 256 * 10**6  # bytes that GDAL keeps of what it reads and writes; by itself a twentieth of the machine's memory
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

    @property
    def share_not_mapped(self) -> float:
        """The part of the raster that the map leaves out, 0 to 1."""
        return sum(self.not_mapped.values()) / self.pixels


def predict(
    model: Model,
    raster: Path,
    out: Path,
    threshold: float | None = None,
    tile: int | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Map the landslides of a raster; memory does not grow with it, apart from what the polygons need.

    Args:
        model: to run.
        raster: a stack, or any raster of named bands that fits the model's contract.
        out: folder of the products (see `Products`); they appear there together, when all are whole.
        threshold: landslide where the probability is at least this. Default: the contract's.
        tile: longest side of a tile's core in pixels. Default: what memory allows. The map is the same.
        progress: told, after each tile, how many are done and how many there are.

    Raises:
        SourceError: the raster cannot be read.
        MismatchError: it does not fit the model's contract.
        ModelError: the network fails.
        OutputError: a product cannot be written; an earlier result is untouched.
        ParamsError: threshold or tile make no sense.
    """
    threshold = model.contract.threshold if threshold is None else threshold
    if not 0 < threshold < 1:
        raise ParamsError(f"the threshold is {threshold:g}; it must lie between 0 and 1")
    if tile is not None and tile < 1:
        raise ParamsError(f"the tile is {tile} pixels; it must be at least 1")
    clock = _Clock()
    with (
        rasterio.Env(GDAL_CACHEMAX=CACHE),
        open_stack(raster, model.contract) as stack,
        Products.replacing(out) as products,
    ):
        tiling = model.tiling(stack.grid.shape, tile)
        tags = _lineage(model, threshold) | stack.provenance
        with MapRasters.writing(products, stack.grid, threshold, tags) as rasters:
            codes, skipped = _map(model, stack, tiling, rasters, progress)
        clock.lap("rasters")
        reasons = {int(code): coverage.reason(int(code), model.contract) for code in codes.nonzero()[0] if code}
        landslides, not_mapped = polygons.trace(products.parts, products.probability, reasons)
        polygons.write(products.polygons, landslides, not_mapped, stack.grid, tags)
        clock.lap("polygons")
        prediction = Prediction(
            raster=stack.name,
            pixels=stack.grid.height * stack.grid.width,
            not_mapped={words: int(codes[code]) for code, words in reasons.items()},
            landslides=len(landslides.area),
            landslide_area_m2=float(landslides.area.sum()),
            threshold=threshold,
            provider=model.provider,
            tile=(tiling.rows.core, tiling.columns.core),
            window=tiling.window,
            halo=tiling.rows.halo,
            tiles=len(tiling),
            skipped=skipped,
        )
        quicklook.draw(products.quicklook, stack, landslides, not_mapped, _caption(model, stack, prediction))
        clock.lap("quicklook")
        _record(products.record, model, prediction, stack.provenance, clock)
    return prediction


def probabilities(model: Model, raster: Path, windows: Iterable[Window]) -> Iterator[NDArray[np.float32]]:
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


def _map(
    model: Model, stack: StackReader, tiling: Tiling, rasters: MapRasters, progress: Progress | None
) -> tuple[NDArray[np.int64], int]:
    """Fill the rasters tile by tile; how many pixels have each code of `coverage`, and how many tiles were skipped."""
    codes, skipped = np.zeros(256, np.int64), 0
    with closing(_read_ahead(stack, tiling)) as windows:  # so that no read goes on when the stack is closed
        for done, (tile, window) in enumerate(zip(tiling, windows, strict=True), start=1):
            blocked = coverage.blocked(window, model.contract)[tile.inner]
            if blocked.all():
                skipped += 1
                probability = np.full(blocked.shape, np.nan, np.float32)
            else:
                probability = model.run(window)[tile.inner]
            rasters.write(tile.core, probability, blocked)
            codes += np.bincount(blocked.ravel(), minlength=len(codes))
            if progress:
                progress(done, len(tiling))
    return codes, skipped


def _read_ahead(stack: StackReader, tiling: Tiling) -> Generator[NDArray[np.float32]]:
    """The window of each tile, read while the network runs on the one before."""
    with ThreadPoolExecutor(max_workers=1) as reader:  # one, for a GDAL dataset serves one thread at a time
        ahead: Future[NDArray[np.float32]] | None = None
        for tile in tiling:
            coming = reader.submit(stack.read, tile.window)
            if ahead:
                yield ahead.result()
            ahead = coming
        if ahead:
            yield ahead.result()


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


def _record(path: Path, model: Model, prediction: Prediction, provenance: Mapping[str, str], clock: _Clock) -> None:
    """Write prediction.json: equal for the same model and raster, apart from `seconds`."""
    contract = model.contract
    record = {
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
        "talud": talud.__version__,
        **asdict(prediction),
        "share_not_mapped": prediction.share_not_mapped,
        "stack": dict(provenance),
        "seconds": clock.laps | {"total": round(sum(clock.laps.values()), 3)},
    }
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class _Clock:
    """How long each part of a run took."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Note the seconds since the lap before."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
