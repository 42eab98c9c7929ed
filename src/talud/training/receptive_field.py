"""How far a pixel reaches: the halo and the alignment of a model, derived from its ONNX graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

from talud.engine.margins import Network
from talud.engine.tiling import round_up


@dataclass(frozen=True)
class ReceptiveField:
    """The context that a tile needs.

    Attributes:
        halo: pixels around a tile that its output can depend on, rounded up to a multiple of the alignment; the tile's
            corners lie on the lattice.
        alignment: windows whose origin and size are multiples of this see the same lattice of poolings.
    """

    halo: int
    alignment: int


def receptive_field(model: onnx.ModelProto) -> ReceptiveField:
    """The receptive field of a graph of one input and one output.

    Raises:
        ModelError: an operator's reach is not known, or paths of different scale meet.
    """
    network = Network(model)
    alignment = math.lcm(*network.scales().values())
    return ReceptiveField(round_up(max(*network.margins()[network.input], 0), alignment), alignment)
