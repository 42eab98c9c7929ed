"""Inputs of the benchmarks: a U-Net of random weights and random rasters.

    python bench/inputs.py FOLDER SIDE

writes into FOLDER `unet.onnx` (7 bands, 32 filters, depth 4) and its variant `unet.int8.onnx`, `stack.tif` (a COG of
SIDE × SIDE pixels), `half.tif` with half the side, and `double.vrt`, which repeats `stack.tif` to twice the side.
Random weights take the same time as trained ones; at the threshold, one pixel in a thousand is a landslide.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.shutil import copy
from rasterio.windows import Window

from talud.bands import band_named, groups_of
from talud.contract import (
    BandContract,
    Contract,
    Measurements,
    ModelInput,
    ModelOrigin,
    NetworkArchitecture,
    variant_path,
)
from talud.engine.planning import pass_memory
from talud.engine.runtime import Model
from talud.grid import Grid
from talud.quantization.precision import quantize_to_int8
from talud.raster import Layout, write_cog

BANDS = ("red", "green", "blue", "slope", "curvature", "vv_pre", "vv_post")
FILTERS, DEPTH = 32, 4
MEAN, DEVIATION = 40.0, 10.0  # of every band: plausible also for slope and curvature
STRIP_ROWS = 512  # rows generated at once
LANDSLIDE_SHARE = 0.001  # of the pixels


def random_stack(height: int, width: int, seed: int) -> NDArray[np.float32]:
    """Return a stack of random values, (bands, height, width)."""
    chance = np.random.default_rng(seed)
    stack = chance.standard_normal((len(BANDS), height, width), np.float32) * np.float32(DEVIATION) + np.float32(MEAN)
    return np.clip(stack, 0, 2 * MEAN, out=stack)


def random_network() -> Any:
    """Return an untrained Keras model."""
    from talud.networks import unet

    mean, deviation = (np.full(len(BANDS), value, np.float32) for value in (MEAN, DEVIATION))
    return unet.build(FILTERS, DEPTH, mean, deviation, seed=1)


def write_model(path: Path, network: Any = None, architecture: NetworkArchitecture | None = None) -> None:
    """Write a model as `talud train` exports it, and its int8 variant.

    Args:
        path: path of the float32 file.
        network: Keras model of the bands. Default: the plain U-Net.
        architecture: name and options of the network, for the contract.
    """
    from talud.engine.margins import receptive_field
    from talud.engine.model_file import weights_digest
    from talud.networks.export import to_onnx
    from talud.training import export

    graph = to_onnx(network or random_network())
    field = receptive_field(graph)
    bands = tuple(
        BandContract(
            name=name, group=band_named(name).group, unit=band_named(name).unit or "1", lowest=0, highest=2 * MEAN,
            mean=MEAN, deviation=DEVIATION, minimum=0, maximum=2 * MEAN,
        )
        for name in BANDS
    )  # fmt: skip
    contract = Contract(
        input=ModelInput(
            bands=bands,
            required_groups=groups_of(BANDS),
            pixel_size=12.5,
            halo=field.halo,
            alignment=field.alignment,
            stack={},
        ),
        origin=ModelOrigin(
            name="7band",
            weights=weights_digest(graph),
            data_version="0" * 32,
            areas=("random values",),
            commit="unknown",
            run_id="0" * 32,
            hyperparameters={} if architecture else {"filters": FILTERS, "depth": DEPTH},
            network=architecture,
        ),
        measured=Measurements(
            threshold=0.5,
            scores={},
            memory=pass_memory(graph),
        ),
    )
    export.save_model(graph, contract, path)
    probability = Model.load(path).run(random_stack(512, 512, seed=0))
    threshold = float(np.quantile(probability, 1 - LANDSLIDE_SHARE))
    contract = contract.replace(threshold=threshold)
    export.save_model(graph, contract, path)
    variant = quantize_to_int8(onnx.load(path), np.stack([random_stack(128, 128, seed) for seed in range(8)]))
    export.save_model(variant, contract.replace(precision="int8"), variant_path(path, "int8"))


def write_stack(path: Path, side: int) -> None:
    """Write a random stack in the format of `talud stack`."""
    grid = Grid(CRS.from_epsg(32618), Affine(12.5, 0, 400_000, 0, -12.5, 650_000), side, side)
    units = tuple(band_named(name).unit or "1" for name in BANDS)
    with write_cog(path, grid, Layout("float32", float("nan"), BANDS, units)) as raster:
        for top in range(0, side, STRIP_ROWS):
            rows = min(STRIP_ROWS, side - top)
            raster.write(random_stack(rows, side, seed=top), window=Window(0, top, side, rows))


def repeat(stack: Path, times: int, path: Path) -> None:
    """Write a VRT of `times` × `times` adjacent copies of a stack."""
    copy(stack, path, driver="VRT")
    tree = ElementTree.parse(path)
    root = tree.getroot()
    height, width = int(root.attrib["rasterYSize"]), int(root.attrib["rasterXSize"])
    root.attrib |= {"rasterYSize": str(height * times), "rasterXSize": str(width * times)}
    for raster_band in root.findall("VRTRasterBand"):
        source = raster_band.find("SimpleSource")
        assert source is not None
        raster_band.remove(source)
        for row, column in product(range(times), repeat=2):
            placed = deepcopy(source)
            rectangle = placed.find("DstRect")
            assert rectangle is not None
            rectangle.attrib |= {"xOff": str(column * width), "yOff": str(row * height)}
            raster_band.append(placed)
    tree.write(path)


def main(folder: Path, side: int) -> None:
    """Write the model and the rasters."""
    write_model(folder / "unet.onnx")
    write_stack(folder / "stack.tif", side)
    write_stack(folder / "half.tif", side // 2)
    repeat(folder / "stack.tif", 2, folder / "double.vrt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
