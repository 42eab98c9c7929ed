"""Synthetic patches in the layout of Sen12Landslides: NetCDF-4 files with variables over time, x and y."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

DAYS = ("2023-04-01", "2023-05-01", "2023-05-20", "2023-06-09")
EVENT, PRE, POST = "2023-05-16", 1, 2
CLEAR, CLOUD, NO_DATA = 4, 9, 0


def write_cube(
    path: Path,
    variables: Mapping[str, NDArray[np.generic]],
    axes: str = "txy",
    size: float = 10.0,
    days: Sequence[str] = DAYS,
    **attributes: object,
) -> None:
    """Write variables, each (time, y, x) with y from north to south, in another order of axes.

    A key of `attributes` with the value None leaves the attribute out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {"t": "time", "x": "x", "y": "y"}
    order = ["tyx".index(axis) for axis in axes]
    side = next(iter(variables.values())).shape[-1]
    with h5py.File(path, "w") as file:
        start = np.datetime64(days[0])
        file["time"] = (np.array(days, "datetime64[D]") - start).astype(np.int64)
        file["time"].attrs.update({"units": f"days since {days[0]} 00:00:00", "calendar": "proleptic_gregorian"})
        file["x"] = 500_000 + size * np.arange(side)
        file["y"] = 4_000_000 - size * np.arange(side)
        for name in names.values():
            file[name].make_scale(name)
        for axis in "xy":
            file[axis].attrs.update({"standard_name": f"projection_{axis}_coordinate", "units": "m"})
        for name, values in variables.items():
            file.create_dataset(name, data=np.transpose(values, order), compression="gzip")
            for place, axis in enumerate(axes):
                file[name].dims[place].attach_scale(file[names[axis]])
        stated = {
            "event_date": EVENT,
            "pre_post_dates": str({"pre": PRE, "post": POST}),
            "annotated": "True",
            "crs": "EPSG:32632",
        }
        file.attrs.update({name: value for name, value in (stated | attributes).items() if value is not None})


def over_time(plane: NDArray[np.generic], times: int = len(DAYS)) -> NDArray[np.generic]:
    """Return a plane for each time."""
    return np.repeat(plane[np.newaxis], times, axis=0)


def synthetic_patch(folder: Path, name: str, seed: int, side: int = 32) -> dict[str, NDArray[np.generic]]:
    """Write a patch of both sensors: a scar that is bright after the event, on a slope.

    Returns its variables, (time, y, x).
    """
    region, number = name.rsplit("_", 1)
    chance = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side].astype(float)
    elevation = 800 + 4 * rows + 20 * np.sin(columns / 6 + seed)
    row, column = chance.integers(side // 4, side // 2, 2)
    scar = (np.abs(rows - row) < side // 6) & (np.abs(columns - column) < side // 8)
    shared = {"DEM": over_time(elevation.round().astype(np.int16)), "MASK": over_time(scar.astype(np.uint8))}
    after = np.arange(len(DAYS))[:, np.newaxis, np.newaxis] >= POST
    optical = {
        band: (chance.normal(800, 60, (len(DAYS), side, side)) + 900 * (after & scar)).clip(1).astype(np.int16)
        for band in ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    }
    classes = np.full((len(DAYS), side, side), CLEAR, np.int16)
    backscatter = {
        band: (chance.normal(level, 1.5, (len(DAYS), side, side)) - 4 * (after & scar)).astype(np.float32)
        for band, level in (("VV", -10.0), ("VH", -16.0))
    }
    s2 = optical | {"SCL": classes} | shared
    write_cube(folder / "s2" / f"{region}_s2_{number}.nc", s2, satellite="s2")
    write_cube(folder / "s1asc" / f"{region}_s1asc_{number}.nc", backscatter | shared, satellite="s1-asc")
    return s2 | backscatter
