"""Memory, time and arithmetic of the maps of deep networks with random weights.

    python bench/networks.py [--size SIDE]

Each network is exported, quantized, registered in a new store, fetched, and maps a random raster of SIDE × SIDE pixels
and 7 bands (default: 4096) with `talud predict`, in the tiles that talud chooses and in others. The maps must be equal,
bit by bit; and on a raster of half the side, so must be a map in tiles and one of a single pass. The results are
written to `bench/networks.json`, with the load of the machine (mean number of processes of the last minute that want
to run, with these), if SIDE is 4096.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import rasterio
from inputs import BANDS, DEVIATION, MEAN, write_model, write_stack
from measures import COMMAND, PRINT_PEAK_MEMORY

from talud.contract import NetworkArchitecture, variant_path
from talud.engine.runtime import Model
from talud.registry import Store

SIDE_PIXELS = 4096
OTHER_TILE_PIXELS = 896  # a multiple of all alignments
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Lite0 to 1/16": ("pretrained_unet", {"stages": "1/16", "weights": "none"}),
    "Lite0, all stages": ("pretrained_unet", {"stages": "all", "weights": "none"}),
    "U-Net, 32 filters, depth 4": ("unet", {"filters": 32, "depth": 4}),
}


def measure(name: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Export, quantize and register a network, and map the rasters with it.

    Args:
        name: name of the network.
        options: options of the network.
        folder: folder of the rasters; the model is written there, too.

    Returns:
        The figures.
    """
    file = folder / "model.onnx"
    parameters = _export(name, options, file)
    registered = _register(file, folder / "registry")
    chosen, other = (_predict(registered, folder, "stack", *tile) for tile in ((), ("--tile", str(OTHER_TILE_PIXELS))))
    whole, tiled = (_predict(registered, folder, "half", "--tile", str(tile)) for tile in (SIDE_PIXELS, 512))
    fast = _predict(variant_path(file, "int8"), folder, "stack")
    contract = Model.load(file).contract
    return {
        "parameters": parameters,
        "halo": contract.input.halo,
        "alignment": contract.input.alignment,
        "equal_in_tiles": bool(np.array_equal(chosen.pop("map"), other.pop("map"), equal_nan=True)),
        "equal_to_one_pass": bool(np.array_equal(whole.pop("map"), tiled.pop("map"), equal_nan=True)),
        "float32": chosen,
        "other_tiles": other,
        "one_pass_of_half": whole,
        "int8": {key: value for key, value in fast.items() if key != "map"},
    }


def _export(name: str, options: dict[str, Any], file: Path) -> int:
    """Write the model and its int8 variant; return the number of parameters."""
    from talud.networks.catalogue import build_network, read_network

    spec = read_network(name, options, "bench")
    mean, deviation = (np.full(len(BANDS), value, np.float32) for value in (MEAN, DEVIATION))
    network = build_network(spec, mean, deviation, 1, batch_normalisation=True)
    write_model(file, network, NetworkArchitecture(name=spec.name, options=spec.fields))
    return int(sum(np.prod(weight.shape) for weight in network.trainable_weights))


def _register(file: Path, root: Path) -> Path:
    """Register a model in a new store; return the file as fetched from it."""
    root.mkdir()
    store = Store.open(root, create=True)
    tags = {"band_set": "7band", "search": "bench", "data_version": "0" * 32, "commit": "unknown"}
    with store.runs.study("7band · bench", tags) as parent, store.runs.trial(parent, "one", {}, tags) as trial:
        trial.log_scores({"f1": 0.5, "precision": 0.5, "recall": 0.5, "iou": 0.3})
    version = store.models.register("landslide-unet-7band", onnx.load(file), trial.run_id, "0" * 64)
    return store.models.fetch(version.uri).path


def _predict(model: Path, folder: Path, raster: str, *options: str) -> dict[str, Any]:
    """Map a raster with `talud predict`; return its map and figures."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        command = [sys.executable, "-c", PRINT_PEAK_MEMORY + COMMAND, "predict", model, folder / f"{raster}.tif"]
        command = [*map(str, command), "--out", made, *options]
        result = subprocess.run(command, cwd=folder, capture_output=True, check=True, text=True)
        seconds = json.loads((Path(made) / "timings.json").read_text())["seconds"]
        record = json.loads((Path(made) / "prediction.json").read_text())
        with rasterio.open(Path(made) / "probability.tif") as probability:
            values = probability.read(1)
    return {
        "tile": record["tile"],
        "tiles": record["tiles"],
        "arithmetic": record.get("arithmetic"),
        "expected_gb": round(record.get("memory", 0) / 1e9, 2),
        "peak_gb": round(int(result.stdout.splitlines()[-1]) * 1024 / 1e9, 2),
        "network_seconds": seconds["tiles"],
        "seconds": seconds["total"],
        "map": values,
    }


def main() -> None:
    """Measure all networks, print the figures, and write them."""
    parser = argparse.ArgumentParser(description="Measure maps with deep networks.")
    parser.add_argument("--size", type=int, default=SIDE_PIXELS, help="side of the raster in pixels (default: 4096)")
    side = parser.parse_args().size
    figures = {"date": datetime.now(UTC).date().isoformat(), "side": side, "networks": {}}
    for title, (name, options) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_stack(Path(folder) / "stack.tif", side)
            write_stack(Path(folder) / "half.tif", side // 2)
            figures["networks"][title] = measure(name, options, Path(folder)) | {"load": round(os.getloadavg()[0], 1)}
        print(title, json.dumps(figures["networks"][title]), flush=True)
        if side != SIDE_PIXELS:
            continue
        Path(__file__).with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
