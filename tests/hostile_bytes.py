"""Damage to files: truncation and changed bits."""

from __future__ import annotations

import numpy as np

EDGE = 1500  # bytes at either end of a file, where formats keep their directories


def cut(content: bytes, chance: np.random.Generator) -> bytes:
    """Truncate a file to a random length."""
    return content[: int(chance.integers(len(content)))]


def flipped(content: bytes, chance: np.random.Generator) -> bytes:
    """Invert 1 to 8 bits of a file, in half of the cases near its start or end."""
    damaged = np.frombuffer(content, np.uint8).copy()
    places = int(chance.integers(1, 9))
    if chance.random() < 0.5:
        offsets = chance.integers(len(damaged), size=places)
    else:
        edge = min(EDGE, len(damaged))
        offsets = chance.integers(edge, size=places) - (edge if chance.random() < 0.5 else 0)
    damaged[offsets] ^= np.left_shift(1, chance.integers(8, size=places)).astype(np.uint8)
    return damaged.tobytes()
