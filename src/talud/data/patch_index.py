"""Patches that a table or a file of splits selects."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyogrio

from talud.data.patches import SPLIT_PARTS, SplitPart
from talud.errors import SourceError
from talud.params import PatchData
from talud.vector import open_vector

_PARTS: Mapping[str, SplitPart] = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_MAX_JSON_BYTES = 1 << 26


def patch_name(stem: str) -> str:
    """Return the common part of the names of image and mask."""
    return re.sub(r"^(image|img|mask)[_-]?(?=.)", "", stem, flags=re.IGNORECASE)


def cube_name(stem: str) -> str:
    """Return the common part of the names of the sensors' files.

    `italy_s2_6982` and `italy_s1asc_6982` are patch italy_6982.
    """
    return re.sub(r"_(s2|s1asc|s1dsc)(?=_|$)", "", stem, count=1, flags=re.IGNORECASE)


def sort_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key with 9 before 10."""
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]
    return parts, name


def select_patches(index: Path | None, data: PatchData, images: Collection[str]) -> dict[str, SplitPart | None]:
    """Return the patches that count, in order, with their parts.

    They are sorted by part, then by number. Without a split, the part is None.

    Args:
        index: table, or splits.json with the keys train, val and test; None for all images.
        data: filter and split column of the table.
        images: names of the patches that have an image.

    Raises:
        SourceError: The index cannot be read, or names a patch without an image.
    """
    if index is None:
        return dict.fromkeys(sorted(images, key=sort_key))
    found = _read_splits(index) if index.suffix.lower() == ".json" else _read_table(index, data.where, data.split)
    for name in found:
        if name not in images:
            raise SourceError(f"{index}: names patch '{name[:80]}', which is not among the {len(images)} images")
    order = [None, *SPLIT_PARTS]
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1]), sort_key(item[0]))))


def _read_table(index: Path, where: str | None, split: str | None) -> dict[str, SplitPart | None]:
    """Return the patches in the selected rows of a table."""
    clause = f" with the filter {where!r}" if where else ""
    with open_vector(index, f" as a table{clause}") as whole:
        table = pyogrio.read_dataframe(whole, where=where, read_geometry=False)
    if not table.shape[1]:
        raise SourceError(f"{index}: has no column; the first one must contain the names of the patches")
    if split and split not in table.columns:
        raise SourceError(f"{index}: has no column '{split}'; it has {', '.join(map(str, table.columns))[:200]}")
    if not len(table):
        raise SourceError(f"{index}: no row fits {where!r}" if where else f"{index}: has no row")
    found: dict[str, SplitPart | None] = {}
    stated = [str(text) for text in table[split]] if split else [None] * len(table)
    for stem, text in zip(table.iloc[:, 0], stated, strict=True):
        _add(index, found, patch_name(str(stem)), text)
    return found


def _read_splits(index: Path) -> dict[str, SplitPart | None]:
    """Return the patches of a file such as splits.json.

    It holds, under train, val and test, lists of objects whose `id` is the name of a patch.
    """
    found: dict[str, SplitPart | None] = {}
    for key, rows in _read_json(index).items():
        if key not in _PARTS or not isinstance(rows, list):
            raise SourceError(f"{index}: has the key '{key[:40]}'; expected lists under train, val and test")
        for row in rows:
            name = row.get("id") if isinstance(row, dict) else None
            if not isinstance(name, str) or not name:
                raise SourceError(f"{index}: an entry of {key} has no id; expected objects such as {{'id': 'italy_1'}}")
            _add(index, found, name, key)
    if not found:
        raise SourceError(f"{index}: names no patch")
    return found


def _read_json(index: Path) -> dict[str, Any]:
    try:
        if index.stat().st_size > _MAX_JSON_BYTES:
            raise SourceError(f"{index}: has more than {_MAX_JSON_BYTES >> 20} MiB, too much for a list of patches")
        content = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{index}: cannot be read as JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SourceError(f"{index}: is not an object with the keys train, val and test")
    return content


def _add(index: Path, found: dict[str, SplitPart | None], name: str, text: str | None) -> None:
    """Add a patch with its part."""
    part = _PARTS.get(text.strip().lower()) if text is not None else None
    if text is not None and part is None:
        raise SourceError(f"{index}: patch '{name[:80]}' has the part '{text[:40]}'; expected train, val or test")
    if found.setdefault(name, part) != part:
        raise SourceError(f"{index}: patch '{name[:80]}' is in two parts of the split; keep one")
