"""Tests of the codes of unmapped pixels."""

from __future__ import annotations

import numpy as np
import pytest

from talud.bands import OCCLUSION_MASKS, Group, band_named
from talud.contract import Contract
from talud.engine.coverage import describe_code, unmapped_codes
from talud.engine.runtime import Model

BANDS = ("slope", "red", "vv_pre", "blue", "vv_post")  # groups in the order terrain, optical, SAR


def contract(model: Model, *required: Group) -> Contract:
    like = model.contract.input.bands[0]
    bands = tuple(like.model_copy(update={"name": name, "group": band_named(name).group}) for name in BANDS)
    return model.contract.replace(bands=bands, required_groups=required)


@pytest.mark.parametrize(
    ("required", "invalid", "why"),
    [
        ((), (), None),
        ((), BANDS[:4], "no data: slope, red, vv_pre, blue"),
        ((), BANDS, "no data: slope, red, vv_pre, blue, vv_post"),
        ((), ("slope", "red", "blue"), None),
        ((Group.OPTICAL,), ("blue",), "no data: blue"),
        ((Group.OPTICAL,), ("slope", "vv_pre", "vv_post"), None),
        ((Group.OPTICAL,), ("slope", "red"), "no data: red"),  # the slope is not required
        ((Group.OPTICAL, Group.SAR), ("vv_post",), "no data: vv_post"),
    ],
)
def test_pixel_is_unmapped_without_its_required_groups(
    model: Model, required: tuple[Group, ...], invalid: tuple[str, ...], why: str | None
) -> None:
    stated = contract(model, *required)
    stack = np.zeros((5, 1, 2), np.float32)
    stack[[BANDS.index(name) for name in invalid], 0, 1] = np.nan
    mapped, code = unmapped_codes(stack, stated)[0]
    assert mapped == 0
    assert (describe_code(int(code), stated) if code else None) == why


@pytest.mark.parametrize(
    ("invalid", "shades", "why"),
    [
        (("red", "blue"), ("cloud",), "cloud"),
        (("red", "vv_pre"), ("cloud",), "cloud and no data: vv_pre"),
        (("red", "vv_pre"), ("sar_mask",), "radar layover or shadow and no data: red"),
        (("red", "vv_pre"), ("cloud", "sar_mask"), "cloud and radar layover or shadow"),
        (("red",), ("sar_mask",), "no data: red"),
        ((), ("cloud", "sar_mask"), None),  # a mask alone excludes no pixel
        (("slope",), ("cloud",), None),
    ],
)
def test_code_names_the_occlusion_that_hides_a_group(
    model: Model, invalid: tuple[str, ...], shades: tuple[str, ...], why: str | None
) -> None:
    stated = contract(model, Group.OPTICAL, Group.SAR)
    stack = np.zeros((5, 1, 2), np.float32)
    stack[[BANDS.index(name) for name in invalid], 0, 1] = np.nan
    hidden = {name: np.array([[False, name in shades]]) for name in OCCLUSION_MASKS}
    mapped, code = unmapped_codes(stack, stated, hidden)[0]
    assert mapped == 0
    assert (describe_code(int(code), stated) if code else None) == why


@pytest.mark.parametrize(
    ("count", "why"), [(13, "no data: b0, b12"), (14, "no data: optical"), (40, "no data: optical")]
)
def test_code_names_groups_if_there_are_too_many_bands(model: Model, count: int, why: str) -> None:
    like = model.contract.input.bands[0]
    bands = tuple(like.model_copy(update={"name": f"b{index}"}) for index in range(count))
    stated = model.contract.replace(bands=bands)
    stack = np.zeros((count, 1, 2), np.float32)
    stack[[0, 12], 0, 1] = np.nan
    code = int(unmapped_codes(stack, stated)[0, 1])
    assert describe_code(code, stated) == why
    stack[:] = np.nan
    everything = unmapped_codes(stack, stated, {name: np.ones((1, 2), np.bool_) for name in OCCLUSION_MASKS}).max()
    assert everything < 2**16 - 1  # the map stores code + 1
