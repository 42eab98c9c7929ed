"""Attribute columns of corrected inventories."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import geopandas
import numpy as np
import pandas
import pyogrio

from talud.data.inventory import find_polygon_layer
from talud.errors import SourceError
from talud.vector import open_vector

GEOMETRY_COLUMN = "geometry"  # name of the polygons' column in a frame, which no attribute can have
_MAX_SHAPEFILE_NAME_LENGTH = 10  # length of a column name in characters
_MAX_SHAPEFILE_TEXT_BYTES = 254  # length of a text in bytes


def read_frame(path: Path, layer: str) -> pandas.DataFrame:
    """Read the features of a layer, indexed by fid.

    Lists and objects become JSON, so that every format can store them. Integers and booleans get types that allow
    missing values. An attribute called `geometry` becomes `geometry_2`.
    """
    frame: pandas.DataFrame = pyogrio.read_dataframe(path, layer=layer, fid_as_index=True)
    fields = [str(name) for name in pyogrio.read_info(path, layer=layer)["fields"]]
    if GEOMETRY_COLUMN in fields:  # pyogrio drops it for the polygons
        hidden = pyogrio.read_dataframe(
            path, layer=layer, columns=[GEOMETRY_COLUMN], read_geometry=False, fid_as_index=True
        )
        frame[_free_name(GEOMETRY_COLUMN, fields)] = hidden[GEOMETRY_COLUMN]
    for column, kind in frame.dtypes.drop(GEOMETRY_COLUMN, errors="ignore").items():
        if kind.kind in "iu":
            frame[column] = frame[column].astype("Int64")
        elif kind.kind == "b":
            frame[column] = frame[column].astype("boolean")
        elif kind.kind == "O" and not isinstance(frame[column].array, geopandas.array.GeometryArray):
            frame[column] = frame[column].map(_to_plain_value)
    return frame


def key_and_geometry_options(path: Path) -> dict[str, str]:
    """Return a layer's key and geometry column names.

    They are returned as creation options of OGR.
    """
    with open_vector(path) as whole:
        info = pyogrio.read_info(whole, layer=find_polygon_layer(path, "inventory"))
    return {"FID": str(info["fid_column"] or "fid"), "GEOMETRY_NAME": str(info["geometry_name"] or "geom")}


def fit_columns(
    path: Path, frame: geopandas.GeoDataFrame, current: geopandas.GeoDataFrame, suffix: str, reserved: Collection[str]
) -> tuple[geopandas.GeoDataFrame, dict[str, str]]:
    """Fit features to the columns of an inventory.

    A name that differs only in case from one of the inventory's is treated as equal. A name that the format reserves,
    or whose values do not fit the type of the inventory's column, gets a number.

    Args:
        path: path of the corrected features, for errors.
        frame: corrected features.
        current: features of the present inventory.
        suffix: suffix of the present inventory's file, which determines the format.
        reserved: names that its layer reserves for keys and geometries.

    Returns:
        The features, and the renamed columns: old name → new name.

    Raises:
        SourceError: A text is longer than a Shapefile column allows.
    """
    longest = _MAX_SHAPEFILE_NAME_LENGTH if suffix == ".shp" else None
    exact = suffix not in (".shp", ".gpkg")  # column names of GeoJSON are case-sensitive
    known = {name if exact else name.lower(): name for name in current.columns.drop(GEOMETRY_COLUMN)}
    kept_back = {name.lower() for name in reserved}
    taken: set[str] = set()
    names: dict[str, str] = {}
    columns = {GEOMETRY_COLUMN: frame[GEOMETRY_COLUMN]}
    # Columns that keep their names come first, so that no other column takes one of these names.
    order = sorted(
        frame.columns.drop(GEOMETRY_COLUMN), key=lambda name: (name not in current.columns, name.lower() in kept_back)
    )
    for column in order:
        wanted = (column or "column")[:longest]
        number = 1
        while True:
            name = wanted if number == 1 else _numbered_name(wanted, number, longest)
            key = name if exact else name.lower()
            name = known.get(key, name)
            values = _convert_like(frame[column], current[name]) if name in current.columns else frame[column]
            if key not in taken and name.lower() not in kept_back and name != GEOMETRY_COLUMN and values is not None:
                break
            number += 1
        taken.add(key)
        columns[name] = values
        if name != column:
            names[column] = name
    if suffix == ".shp":
        _check_text_lengths(path, columns)
    return geopandas.GeoDataFrame(columns, geometry=GEOMETRY_COLUMN, crs=frame.crs), names


def _convert_like(values: pandas.Series, like: pandas.Series) -> pandas.Series | None:
    """Convert values to another column's type, or return None."""
    try:
        return values.astype(like.dtype)
    except (ValueError, TypeError):
        return None


def _free_name(name: str, fields: Collection[str]) -> str:
    number = 2
    while _numbered_name(name, number, None) in fields:
        number += 1
    return _numbered_name(name, number, None)


def _numbered_name(name: str, number: int, longest: int | None) -> str:
    end = f"_{number}"
    return (name[: longest - len(end)] if longest else name) + end


def _to_plain_value(value: object) -> object:
    """Convert lists and objects to JSON, bytes to hexadecimal."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.hex()
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value


def _check_text_lengths(path: Path, columns: dict[str, pandas.Series]) -> None:
    for name, values in columns.items():
        for value in values if name != GEOMETRY_COLUMN else ():
            if isinstance(value, str) and len(value.encode()) > _MAX_SHAPEFILE_TEXT_BYTES:
                raise SourceError(
                    f"{path}: the column '{name}' has a text of {len(value.encode())} bytes, and the inventory, a "
                    f"Shapefile, can store {_MAX_SHAPEFILE_TEXT_BYTES}; shorten it, or convert the inventory to a "
                    "GeoPackage"
                )
