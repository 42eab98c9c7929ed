"""The mask of an area on disk: its classes, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping

from talud.metrics import BACKGROUND, LANDSLIDE, UNKNOWN
from talud.raster import PATCH_TAG, Layout

_COLOURS = {BACKGROUND: (224, 224, 224, 255), LANDSLIDE: (204, 51, 17, 255), UNKNOWN: (0, 0, 0, 0)}
_TOLD = ("TALUD_AREA", "TALUD_EVENT", "TALUD_SYNTHETIC", PATCH_TAG)


def mask_layout(stack_tags: Mapping[str, str]) -> Layout:
    """What a mask holds apart from its pixels, given the tags of the stack that it lies beside."""
    tags = {key: stack_tags[key] for key in _TOLD if key in stack_tags}
    return Layout("uint8", UNKNOWN, ("landslide",), (), tags, _COLOURS, "mode")
