"""Where a map says something."""

from __future__ import annotations

import numpy as np
import pytest

from talud.bands import Group, band
from talud.contract import Contract
from talud.inference.coverage import blocked, reason
from talud.inference.runtime import Model

BANDS = ("slope", "red", "vv_pre", "blue", "vv_post")  # groups in the order terrain, optical, SAR


def contract(model: Model, *required: Group) -> Contract:
    like = model.contract.bands[0]
    bands = tuple(like.model_copy(update={"name": name, "group": band(name).group}) for name in BANDS)
    return model.contract.model_copy(update={"bands": bands, "required_groups": required})


@pytest.mark.parametrize(
    ("required", "invalid", "why"),
    [
        ((), (), None),
        ((), BANDS[:4], "terrain, optical and sar invalid"),
        ((), BANDS, "terrain, optical and sar invalid"),
        ((), ("slope", "red", "blue"), None),
        ((Group.OPTICAL,), ("blue",), "optical invalid"),
        ((Group.OPTICAL,), ("slope", "vv_pre", "vv_post"), None),
        ((Group.OPTICAL,), ("slope", "red"), "terrain and optical invalid"),
        ((Group.OPTICAL, Group.SAR), ("vv_post",), "sar invalid"),
    ],
)
def test_a_pixel_is_left_out_for_want_of_a_required_group_or_of_all(
    model: Model, required: tuple[Group, ...], invalid: tuple[str, ...], why: str | None
) -> None:
    stated = contract(model, *required)
    stack = np.zeros((5, 1, 2), np.float32)
    stack[[BANDS.index(name) for name in invalid], 0, 1] = np.nan
    mapped, code = blocked(stack, stated)[0]
    assert mapped == 0
    assert (reason(int(code), stated) if code else None) == why
