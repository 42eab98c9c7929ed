"""Checks of the directories of a TIFF before GDAL opens it.

GDAL takes a time that grows with the square of the number of bands, tags and overviews, so a file of some megabytes
could keep a processor for minutes.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from talud.errors import SourceError
from talud.raster import MOST_BANDS

MOST_DIRECTORIES = 100  # overviews and masks among them
LARGEST_METADATA_BYTES = 500_000  # of GDAL's XML
_BANDS, _METADATA = 277, 42112  # tags of TIFF
_ENTRIES = {"short": ("H", "HHI", 12, "I"), "long": ("Q", "HHQ", 20, "Q")}  # of TIFF and of BigTIFF


def check(path: Path, name: str) -> None:
    """Check that a TIFF is not too complex for GDAL to read quickly.

    Bands, metadata and directories are limited.

    A damaged file, or one that is not a TIFF, passes: opening it raises an error.

    Args:
        path: the file.
        name: of the file, in messages.

    Raises:
        SourceError: it has more.
    """
    try:
        with path.open("rb") as file:
            _walk(file, name)
    except (struct.error, OSError, OverflowError, ValueError):  # cut off, or leads nowhere
        return


def _walk(file: BinaryIO, name: str) -> None:
    start = file.read(4)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None:
        return
    is_big = struct.unpack(f"{order}H", start[2:])[0] == 43
    number, entry, size, pointer = _ENTRIES["long" if is_big else "short"]
    file.seek(8 if is_big else 4)
    place, seen = _unpack(file, order + pointer), 0
    while place:
        seen += 1
        if seen > MOST_DIRECTORIES:
            raise SourceError(
                f"{name}: has more than {MOST_DIRECTORIES} overviews and masks; write it anew, for example with "
                "gdal_translate -of COG"
            )
        file.seek(place)
        count = _unpack(file, order + number)
        entries = file.read(count * size) if count < 65_536 else b""
        for at in range(0, len(entries) - size + 1, size):
            tag, _, length = struct.unpack_from(order + entry, entries, at)
            value = struct.unpack_from(f"{order}H", entries, at + struct.calcsize(f"={entry}"))[0]
            _check_entry(tag, length, value, name)
        place = _unpack(file, order + pointer)


def _check_entry(tag: int, length: int, value: int, name: str) -> None:
    if tag == _BANDS and value > MOST_BANDS:
        raise SourceError(f"{name}: has {value:,} bands; at most {MOST_BANDS:,} are read")
    if tag == _METADATA and length > LARGEST_METADATA_BYTES:
        raise SourceError(
            f"{name}: has {length:,} bytes of metadata; at most {LARGEST_METADATA_BYTES:,} are read; write it without"
        )


def _unpack(file: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])
