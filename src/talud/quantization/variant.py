"""Making the variant of a model in reduced precision, and measuring what it loses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from talud import metrics, outputs
from talud.contract import Contract, Reduced, Subset, variant_path
from talud.data.held_out import check_held_out
from talud.data.patches import Patches, read, split
from talud.data.record import current_stack
from talud.engine.model_file import save
from talud.engine.runtime import Model
from talud.errors import ModelError
from talud.files import replacing
from talud.measurement import subsets
from talud.metrics import Confusion
from talud.products.area import validation_counts
from talud.products.prediction import probabilities
from talud.project import Project
from talud.quantization.float16 import halved
from talud.quantization.int8 import quantized
from talud.raster import open_raster


@dataclass(frozen=True)
class Variant:
    """A variant that was made.

    Attributes:
        path: of its file.
        contract: with its scores, and what it loses against the float32 file.
    """

    path: Path
    contract: Contract


def make(project: Project, path: Path, precision: Reduced) -> Variant:
    """Write the variant of a model beside it; the same bytes for the same model and stacks.

    It is calibrated on the patches that the model was trained on, and measured on the validation blocks. The threshold
    stays that of the float32 file, so that the two make the same map but for rounding, and share the decision which
    of two versions is the better one: the variant's F1 hardly depends on it (see `metrics.best_threshold`).

    Args:
        project: that the model was trained in, its stacks as they were then.
        path: of the float32 file.
        precision: of the variant.

    Raises:
        ModelError: the file is missing, or is no float32 model of talud.
        StudyError: stacks, inventories or split are not those that the model was trained on.
        SourceError: a raster cannot be read.
        OutputError: the file cannot be written.
    """
    model = Model.load(path)
    if model.contract.derived.precision != "float32":
        raise ModelError(
            f"{path}: is a variant already, of precision {model.contract.derived.precision}; name the float32 file"
        )
    if model.contract.derived.adapted:
        raise ModelError(
            f"{path}: is adapted to {model.contract.derived.adapted.area}, so the training patches cannot calibrate "
            "it; quantize the model that it was adapted from"
        )
    check_held_out(model.contract, path, project)
    graph = _reduced(onnx.load(path), precision, project, model.contract)
    # What a smaller halo costs, and parity, were measured with the float32 file; rounding makes more of both.
    draft = model.contract.replace(precision=precision, halo_errors={}, parity={})
    out = variant_path(path, precision)
    stacks = [file for area in model.contract.origin.areas for file in (project.stack(area), project.mask(area))]
    outputs.check_file(out, [path, *stacks])
    with replacing(out) as scratch:
        save(graph, draft, scratch)
        blocks = _compare(model, Model.load(scratch), project)
        comparison = sum(blocks, start=_Comparison())
        measured = {
            "scores": comparison.variant.scores(),
            "validation": validation_counts([block.variant for block in blocks]),
            "loss": comparison.loss,
            "subsets": _subsets(Model.load(scratch), project),
        }
        contract = draft.replace(**measured)
        save(graph, contract, scratch)
    return Variant(out, contract)


def _reduced(graph: onnx.ModelProto, precision: Reduced, project: Project, contract: Contract) -> onnx.ModelProto:
    if precision == "float16":
        return halved(graph)
    params = project.params
    patches = Patches.joined(
        [
            read(
                current_stack(project, area),
                project.mask(area),
                contract.input.band_names,
                split(project.mask(area), params.split, params.seed),
                "training",
                params.split,
                params.seed,
            )
            for area in contract.origin.areas
        ]
    )
    stack = np.ascontiguousarray(np.moveaxis(patches.stack, -1, 1))
    return quantized(graph, np.concatenate([stack, *_with_less(stack, contract)]))


def _with_less(stack: NDArray[np.float32], contract: Contract) -> list[NDArray[np.float32]]:
    """Every so many of the patches with each of the subsets alone that the model maps with: what ranges it meets."""
    less = [
        subset.groups
        for subset in contract.input.subsets
        if subset.supported and set(subset.groups) < set(contract.input.groups)
    ]
    return [
        np.stack([subsets.only(patch, contract, groups) for patch in stack[place :: len(less)]])
        for place, groups in enumerate(less)
        if len(stack) > place
    ]


def _subsets(variant: Model, project: Project) -> tuple[Subset, ...]:
    """What the variant is worth with each of its subsets; those that the model maps with, it maps with too."""
    stated = variant.contract.input.subsets
    if not stated:
        return ()
    params, parts = project.params, []
    for area in variant.contract.origin.areas:
        blocks = split(project.mask(area), params.split, params.seed)
        windows = [block.window for block in blocks if block.part == "validation"]
        parts.append((current_stack(project, area), project.mask(area), windows))
    maps_with = {frozenset(subset.groups) for subset in stated if subset.supported}
    return tuple(
        found.model_copy(update={"supported": frozenset(found.groups) in maps_with})
        for found in subsets.measured(variant, parts, variant.contract.input.groups, 1)
    )


@dataclass(frozen=True)
class _Comparison:
    """Model and variant on the same pixels. Comparisons of disjoint sets add up.

    Attributes:
        model: counts of the float32 file.
        variant: counts of the variant.
        pixels: that are mapped.
        sum: of the differences of probability there.
        largest: of them.
    """

    model: Confusion = field(default_factory=Confusion)
    variant: Confusion = field(default_factory=Confusion)
    pixels: int = 0
    sum: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(
        cls, found: tuple[NDArray[np.float32], NDArray[np.float32]], truth: NDArray[np.uint8], threshold: float
    ) -> _Comparison:
        mapped = np.isfinite(found[0])
        model, variant = (metrics.confusion(probability >= threshold, truth, mapped) for probability in found)
        difference = np.abs(found[0] - found[1])[mapped].astype(np.float64)
        return cls(model, variant, int(difference.size), float(difference.sum()), float(difference.max(initial=0)))

    def __add__(self, other: _Comparison) -> _Comparison:
        return _Comparison(
            self.model + other.model,
            self.variant + other.variant,
            self.pixels + other.pixels,
            self.sum + other.sum,
            max(self.largest, other.largest),
        )

    @property
    def loss(self) -> dict[str, float]:
        """What the contract says of the variant."""
        return {
            "f1": self.model.f1 - self.variant.f1,
            "largest_difference": self.largest,
            "mean_difference": self.sum / self.pixels if self.pixels else 0.0,
        }


def _compare(model: Model, variant: Model, project: Project) -> list[_Comparison]:
    """Both on each validation block of the areas that the model was trained on, each block read alone.

    Pixels count where all groups are valid, as at export; `_subsets` says what each is worth with fewer.
    """
    compared, params = [], project.params
    both = [
        replace(each, contract=each.contract.without_optional_groups()) if each.contract.input.subsets else each
        for each in (model, variant)
    ]
    for area in model.contract.origin.areas:
        blocks = split(project.mask(area), params.split, params.seed)
        windows = [block.window for block in blocks if block.part == "validation"]
        answers = (probabilities(each, current_stack(project, area), windows) for each in both)
        with open_raster(project.mask(area)) as mask:
            for window, *found in zip(windows, *answers, strict=True):
                truth = mask.read(1, window=window)
                compared.append(_Comparison.of((found[0], found[1]), truth, model.contract.measured.threshold))
    return compared
