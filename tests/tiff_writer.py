"""TIFF files that no program writes, created byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

_GEO_KEYS = struct.pack("<20H", 1, 1, 0, 4, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32618, 3076, 0, 1, 9001)
_SHORT, _LONG, _DOUBLE, _ASCII = 3, 4, 12, 2
_SIZES = {_SHORT: 2, _LONG: 4, _DOUBLE: 8, _ASCII: 1}


def write_tiff(
    path: Path, width: int, height: int, count: int = 1, *, overviews: int = 0, metadata: bytes = b"",
    stored: bytes | None = None, deflated: bool = False,
) -> Path:  # fmt: skip
    """Write a GeoTIFF of uint8 in UTM 18N, with its pixels in one strip.

    Args:
        path: path of the file.
        width: width in pixels.
        height: height in pixels.
        count: number of bands, which are interleaved by pixel.
        overviews: number of additional directories of one pixel.
        metadata: XML metadata of GDAL.
        stored: bytes of the strip. Default: ones.
        deflated: true to mark the strip as compressed.
    """
    data = bytes([1]) * (width * height * count) if stored is None else stored
    entries: dict[int, tuple[int, bytes]] = {
        256: (_LONG, struct.pack("<I", width)),
        257: (_LONG, struct.pack("<I", height)),
        258: (_SHORT, struct.pack("<H", 8) * count),
        259: (_SHORT, struct.pack("<H", 8 if deflated else 1)),
        262: (_SHORT, struct.pack("<H", 1)),
        273: (_LONG, struct.pack("<I", 8)),
        277: (_SHORT, struct.pack("<H", count)),
        278: (_LONG, struct.pack("<I", height)),
        279: (_LONG, struct.pack("<I", len(data))),
        284: (_SHORT, struct.pack("<H", 1)),
        33550: (_DOUBLE, struct.pack("<3d", 12.5, 12.5, 0)),
        33922: (_DOUBLE, struct.pack("<6d", 0, 0, 0, 400_000, 650_000, 0)),
        34735: (_SHORT, _GEO_KEYS),
    }
    if count > 1:
        entries[338] = (_SHORT, bytes(2 * (count - 1)))
    if metadata:
        entries[42112] = (_ASCII, metadata + b"\0")
    out = bytearray(b"II*\0" + bytes(4) + data + bytes(len(data) % 2))
    pointer = 4
    small = {tag: entries[tag] for tag in (256, 257, 258, 259, 262, 273, 277, 278, 279, 284)}
    small[254] = (_LONG, struct.pack("<I", 1))
    for tag in (256, 257, 278, 279):
        small[tag] = (_LONG, struct.pack("<I", 1))
    for directory in [entries] + [small] * overviews:
        pointer = _append(out, directory, pointer)
    path.write_bytes(out)
    return path


def _append(out: bytearray, directory: Mapping[int, tuple[int, bytes]], pointer: int) -> int:
    """Append a directory; return the position of its pointer to the next."""
    places = {}
    for tag, (_, value) in directory.items():
        if len(value) > 4:
            places[tag] = len(out)
            out += value + bytes(len(value) % 2)
    struct.pack_into("<I", out, pointer, len(out))
    out += struct.pack("<H", len(directory))
    for tag, (kind, value) in sorted(directory.items()):
        out += struct.pack("<HHI", tag, kind, len(value) // _SIZES[kind])
        out += struct.pack("<I", places[tag]) if tag in places else value.ljust(4, b"\0")
    out += bytes(4)
    return len(out) - 4
