"""The memory that a step of training needs, counted from the form of the U-Net.

A step is written down as the operations of its forward and its backward pass, each with the tensors that it touches; a
tensor takes memory from the first operation that touches it to the last. What a framework adds (its own start, the
workspace of its convolutions, memory that it does not give back at once) is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from talud.params import TrainingOptions

SINGLE, HALF = 4, 2  # bytes of a float32 and of a float16
_GIVEN = ("scaling", "narrowed")  # the scaled stack, of which no gradient is taken

Kind = Literal["cast", "convolution", "linear", "normalise", "pool", "up", "join"]
State = Literal["value", "value again", "gradient", "second gradient"]
Operation = tuple[tuple[State, str], ...]  # the tensors that it touches: what of which layer's output


@dataclass(frozen=True)
class StepBytes:
    """The bytes of one step.

    Attributes:
        kept: activations that the forward pass leaves for the backward pass.
        activations: activations and their gradients, at the moment when they are most.
        weights: in float32, and with mixed precision their float16 copies.
        gradients: of the weights.
        moments: the two of Adam.
    """

    kept: int
    activations: int
    weights: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        """All that is there at that moment."""
        return self.activations + self.weights + self.gradients + self.moments


@dataclass(frozen=True)
class _Layer:
    """A layer after the scaling; its name is also that of its output, which has so many channels of so many bytes."""

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    level: int
    channels: int
    element: int


_Block = tuple[_Layer, ...]


def step_bytes(
    options: TrainingOptions,
    *,
    filters: int,
    batch_size: int,
    patch: int,
    bands: int,
    batch_normalisation: bool = False,
) -> StepBytes:
    """The memory of one training step of `talud.training.unet`.

    Args:
        options: the depth, and whether to rematerialise and to compute in mixed precision.
        filters: of the first level.
        batch_size: patches in a batch.
        patch: side of a patch in pixels, a multiple of 2^depth.
        bands: of the stack.
        batch_normalisation: whether each convolution but the last is normalised.
    """
    element = HALF if options.mixed_precision else SINGLE
    blocks = _blocks(filters, options.depth, bands, element, batch_normalisation)
    layers = [layer for block in blocks for layer in block]
    pixels = batch_size * patch * patch
    sizes = {layer.name: pixels // 4**layer.level * layer.channels * layer.element for layer in layers}
    sizes["scaling"] = pixels * bands * SINGLE
    forward = [_forward(layer) for layer in layers]
    alive = _alive([*forward, *_backward_pass(blocks, options.rematerialise)], sizes)
    weights = _weights(layers, bands)
    return StepBytes(
        kept=alive[len(forward) - 1],
        activations=max(alive),
        weights=weights * (SINGLE + HALF if options.mixed_precision else SINGLE),
        gradients=weights * SINGLE,
        moments=2 * weights * SINGLE,
    )


def _blocks(filters: int, depth: int, bands: int, element: int, normalised: bool) -> tuple[_Block, ...]:
    """The layers in the blocks of `talud.training.unet`, and the probability as the last."""
    mixed, blocks, x = element != SINGLE, list[_Block](), "scaling"

    def chain(entry: _Layer | None, *names: str, level: int) -> str:
        """A block: an entry, then convolutions."""
        pairs = pairwise((entry.name if entry else x, *names))
        convolutions = [layer for y, name in pairs for layer in convolution(y, name, level)]
        blocks.append((entry, *convolutions) if entry else tuple(convolutions))
        return names[-1]

    def convolution(y: str, name: str, level: int) -> Iterator[_Layer]:
        """With its ReLU; or by itself, then normalised, with that one's."""
        form = level, filters * 2**level, element
        if normalised:
            yield _Layer(f"{name}_linear", "linear", (y,), *form)
            yield _Layer(name, "normalise", (f"{name}_linear",), *form)
        else:
            yield _Layer(name, "convolution", (y,), *form)

    for level in range(depth + 1):
        entry = _Layer("narrowed", "cast", (x,), 0, bands, element) if mixed else None
        if level:
            entry = _Layer(f"pool_{level - 1}", "pool", (x,), level, filters * 2 ** (level - 1), element)
        name = f"encoder_{level}" if level < depth else "bottom"
        x = chain(entry, f"{name}_first", f"{name}_second", level=level)
    for level in reversed(range(depth)):
        channels = filters * 2 ** (level + 1)
        x = chain(_Layer(f"up_{level}", "up", (x,), level, channels, element), f"up_{level}_convolution", level=level)
        join = _Layer(f"skip_{level}", "join", (f"encoder_{level}_second", x), level, channels, element)
        x = chain(join, f"decoder_{level}_first", f"decoder_{level}_second", level=level)
    last = _Layer("probability", "convolution", ("widened" if mixed else x,), 0, 1, SINGLE)
    return (*blocks, (_Layer("widened", "cast", (x,), 0, filters, SINGLE), last) if mixed else (last,))


def _weights(layers: list[_Layer], bands: int) -> int:
    """The number of trainable weights: kernels of 3 × 3 (1 × 1 for the probability); biases, or scale and offset."""
    channels = {layer.name: layer.channels for layer in layers} | {"scaling": bands}

    def count(layer: _Layer) -> int:
        kernel = channels[layer.inputs[0]] * (1 if layer.name == "probability" else 9)
        return {"convolution": kernel + 1, "linear": kernel, "normalise": 2}.get(layer.kind, 0) * layer.channels

    return sum(map(count, layers))


def _forward(layer: _Layer, again: frozenset[str] = frozenset()) -> Operation:
    """A layer's forward operation; what is in `again` is of the second time."""
    return _values((*layer.inputs, layer.name), again)


def _backward_pass(blocks: tuple[_Block, ...], rematerialise: bool) -> Iterator[Operation]:
    """From the gradient of the probability down to the first layer's weights."""
    seen: set[str] = set()
    for block in reversed(blocks):
        again = frozenset[str]()
        if rematerialise and block is not blocks[-1]:
            again = frozenset(name for layer in block for name in (*layer.inputs, layer.name))
            for name in sorted(again - {layer.name for layer in block}):
                yield (("value", name), ("value again", name))  # TensorFlow begins with a copy of what enters
            yield from (_forward(layer, again) for layer in block)
        for layer in reversed(block):
            yield from _backward(layer, again, seen)


def _backward(layer: _Layer, again: frozenset[str], seen: set[str]) -> Iterator[Operation]:
    """A layer's backward operations: its activation's, in place; its own; the sum, where a skip gets two gradients."""
    own: Operation = (("gradient", layer.name),)
    if layer.kind in ("convolution", "normalise"):
        yield own + _values((layer.name,), again)
    needed = (*layer.inputs, layer.name) if layer.kind == "pool" else layer.inputs
    needed = () if layer.kind in ("cast", "up", "join") else needed
    twice = [name for name in layer.inputs if name in seen]
    made = tuple((_gradient(name in twice), name) for name in layer.inputs if name not in _GIVEN)
    yield own + _values(needed, again) + made
    yield from ((("gradient", name), ("second gradient", name)) for name in twice)
    seen.update(layer.inputs)


def _gradient(second: bool) -> State:
    return "second gradient" if second else "gradient"


def _values(names: tuple[str, ...], again: frozenset[str]) -> Operation:
    return tuple(("value again" if name in again else "value", name) for name in names)


def _alive(operations: list[Operation], sizes: Mapping[str, int]) -> list[int]:
    """How many bytes are there at each operation."""
    first: dict[tuple[State, str], int] = {}
    last: dict[tuple[State, str], int] = {}
    for time, operation in enumerate(operations):
        for tensor in operation:
            first.setdefault(tensor, time)
            last[tensor] = time
    change = [0] * (len(operations) + 1)
    for tensor, time in first.items():
        change[time] += sizes[tensor[1]]
        change[last[tensor] + 1] -= sizes[tensor[1]]
    return list(accumulate(change[:-1]))
