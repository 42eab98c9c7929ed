"""Creation of a reduced-precision variant, and measurement of its loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from talud import source_files
from talud.contract import Contract, ReducedPrecision, Subset, variant_path
from talud.data.stack_record import check_held_out
from talud.engine.model_file import save_model
from talud.engine.runtime import Model
from talud.errors import ModelError
from talud.files import atomic_replace
from talud.measurement import subsets
from talud.measurement.assessment import Assessment
from talud.measurement.sites import Site, join_patches, labelled_windows
from talud.project import Project
from talud.quantization.precision import convert_to_float16, quantize_to_int8


@dataclass(frozen=True)
class Variant:
    """A variant that was written.

    Attributes:
        path: path of the file.
        contract: contract of the variant, with its scores and its loss compared with the float32 file.
    """

    path: Path
    contract: Contract


def make_variant(project: Project, path: Path, precision: ReducedPrecision) -> Variant:
    """Write the variant of a model next to it.

    The same model and stacks give the same bytes. An int8 variant is calibrated on the patches that the model was
    trained on. Every variant is scored on the validation blocks. It keeps the threshold of the float32 file, so that
    the maps of both differ by rounding only, and one comparison of two versions holds for both: the variant's F1 hardly
    depends on the threshold (see `metrics.best_threshold`).

    Args:
        project: project that the model was trained in, with unchanged stacks.
        path: path of the float32 file.
        precision: precision of the variant.

    Raises:
        ModelError: The file is missing, or is not a float32 model of talud.
        StudyError: The stacks, inventories or split are not those that the model was trained on.
        SourceError: A raster cannot be read.
        OutputError: The file cannot be written.
    """
    model = Model.load(path)
    if model.contract.derived.precision != "float32":
        raise ModelError(
            f"{path}: is already a variant of precision {model.contract.derived.precision}; use the float32 file"
        )
    if model.contract.derived.adapted:
        raise ModelError(
            f"{path}: is adapted to {model.contract.derived.adapted.area}, so the training patches cannot calibrate "
            "it; quantize the model from which it was adapted"
        )
    check_held_out(model.contract, path, project)
    graph = _reduced_graph(onnx.load(path), precision, project, model.contract)
    # The errors of smaller halos and the parity were measured with the float32 file, and are larger for the variant.
    draft = model.contract.replace(precision=precision, halo_errors={}, parity={})
    out = variant_path(path, precision)
    stacks = [file for area in model.contract.origin.areas for file in (project.stack(area), project.mask(area))]
    source_files.check_output_file(out, [path, *stacks])
    with atomic_replace(out) as scratch:
        save_model(graph, draft, scratch)
        loss = _compare(model, Model.load(scratch), project)
        measured = {
            "scores": loss.variant.confusion.scores(),
            "validation": loss.variant.validation,
            "loss": loss.to_contract(),
            "subsets": _measure_subsets(Model.load(scratch), project),
        }
        contract = draft.replace(**measured)
        save_model(graph, contract, scratch)
    return Variant(out, contract)


def _reduced_graph(
    graph: onnx.ModelProto, precision: ReducedPrecision, project: Project, contract: Contract
) -> onnx.ModelProto:
    if precision == "float16":
        return convert_to_float16(graph)
    patches = join_patches(_sites(project, contract), contract.input.band_names, "training")
    stack = np.ascontiguousarray(np.moveaxis(patches.stack, -1, 1))
    return quantize_to_int8(graph, np.concatenate([stack, *_patches_of_subsets(stack, contract)]))


def _patches_of_subsets(stack: NDArray[np.float32], contract: Contract) -> list[NDArray[np.float32]]:
    """Return patches with each supported subset of band groups.

    The calibration then covers the value ranges that occur with missing groups. Each patch is used for one subset.
    """
    reduced = [
        subset.groups
        for subset in contract.input.subsets
        if subset.supported and set(subset.groups) < set(contract.input.groups)
    ]
    return [
        np.stack([subsets.mask_other_groups(patch, contract, groups) for patch in stack[start :: len(reduced)]])
        for start, groups in enumerate(reduced)
        if len(stack) > start
    ]


def _measure_subsets(variant: Model, project: Project) -> tuple[Subset, ...]:
    """Score the variant with each subset of band groups.

    The model's supported subsets remain supported.
    """
    stated = variant.contract.input.subsets
    if not stated:
        return ()
    maps_with = {frozenset(subset.groups) for subset in stated if subset.supported}
    return tuple(
        scored.model_copy(update={"supported": frozenset(scored.groups) in maps_with})
        for scored in subsets.score_subsets(
            variant, _sites(project, variant.contract), variant.contract.input.groups, 1
        )
    )


def _sites(project: Project, contract: Contract) -> list[Site]:
    """Return the areas that a model was trained on."""
    return [Site.of(project, area) for area in contract.origin.areas]


@dataclass(frozen=True)
class _VariantLoss:
    """Scores of a model and its variant, and their differences.

    Attributes:
        model: scores of the float32 file.
        variant: scores of the variant on the same pixels.
        mean: mean absolute difference of the probabilities.
        largest: largest absolute difference of the probabilities.
    """

    model: Assessment
    variant: Assessment
    mean: float
    largest: float

    def to_contract(self) -> dict[str, float]:
        """Return the contract's entry `loss`."""
        return {
            "f1": self.model.f1 - self.variant.f1,
            "largest_difference": self.largest,
            "mean_difference": self.mean,
        }


def _compare(model: Model, variant: Model, project: Project) -> _VariantLoss:
    """Compare a model and its variant on the validation blocks.

    As in the export, only pixels with all band groups count; `_measure_subsets` scores the subsets.
    """
    both = [
        replace(each, contract=each.contract.without_optional_groups()) if each.contract.input.subsets else each
        for each in (model, variant)
    ]
    counts, pixels, total, largest = [], 0, 0.0, 0.0
    for site in _sites(project, model.contract):
        for window in labelled_windows(site, site.windows("validation"), *both):
            counts.append(window.assess([model.contract.measured.threshold] * 2))
            first, second = window.probabilities
            difference = np.abs(first - second)[window.valid].astype(np.float64)
            pixels += difference.size
            total += float(difference.sum())
            largest = max(largest, float(difference.max(initial=0)))
    original, reduced = (Assessment.total(each) for each in zip(*counts, strict=True))
    return _VariantLoss(original, reduced, total / pixels if pixels else 0.0, largest)
