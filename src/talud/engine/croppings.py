"""The cropped networks of a model, each opened in a session of its own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import onnx

from talud.engine.cropping import cropped, without_weights
from talud.engine.margins import Margin, Network
from talud.engine.session import Provider, open_session
from talud.engine.tiling import Rim
from talud.errors import ModelError

KEPT = 320 * 10**6  # bytes of weights that sessions may hold to save their opening anew, 40 ms each


class Croppings:
    """A network cropped for tiles (see `cropping`), opened when a tile first asks for it.

    Tiles come row by row, and a row has a left, a middle and a right one, so at least three sessions are kept; all nine
    kinds where the weights are small, for workers meet the rows in any order. They read the same weights; what ONNX
    Runtime makes of them for its blocked convolutions, each holds for itself.

    Attributes:
        margin: what the network needs around a core; None where it holds an operator of unknown reach, and can only be
            run whole.
    """

    def __init__(self, graph: onnx.ModelProto, provider: Provider, threads: int | None) -> None:
        self._provider, self._threads = provider, threads
        self._graph, self._weights = without_weights(graph)
        network = Network(self._graph)
        try:
            self.margin: Margin | None = network.margins()[network.input]
        except ModelError:
            self.margin = None
        self.session = lru_cache(maxsize=self.kept)(self._open)

    @property
    def weight_bytes(self) -> int:
        """What the weights take, once."""
        return sum(values.nbytes for values in self._weights.values())

    @property
    def kept(self) -> int:
        """How many sessions stay open."""
        return min(max(KEPT // max(self.weight_bytes, 1), 3), 9)

    def _open(self, rim: Rim, halo: int) -> Any:
        graph = cropped(self._graph, rim, halo).SerializeToString()
        return open_session(graph, self._provider, self._weights, self._threads)
