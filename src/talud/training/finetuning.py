"""Fine-tuning of a model on labelled patches of a new area."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import onnx
from numpy.typing import NDArray
from rasterio.windows import Window

from talud import metrics
from talud.bands import Group
from talud.contract import Contract, FineTuning
from talud.data.patches import Block, Patches
from talud.data.stack_record import check_current_stack, check_held_out
from talud.engine import coverage
from talud.engine.model_file import save_model, weights_digest
from talud.engine.runtime import Model
from talud.errors import ModelError, StudyError
from talud.files import md5
from talud.grid import Grid
from talud.mapping.reader import open_stack
from talud.measurement import subsets
from talud.measurement.assessment import Assessment
from talud.measurement.sites import Site, assess, join_patches, labelled_windows, probability_histogram
from talud.networks.export import to_onnx
from talud.networks.rebuilding import from_onnx
from talud.params import Params
from talud.process import defer_sigint
from talud.progress import Progress, tracked
from talud.project import Project
from talud.raster import open_raster
from talud.training.augmentation import Augmenter
from talud.training.batches import Dropping
from talud.training.export import check_parity
from talud.training.losses import Loss

BATCH_SIZE = 16  # patches in a batch; half of them come from the training areas, if these are available
DEFAULT_STEPS = 200
# At most a tenth of the learning rates of a training, so that the model keeps what it has learned.
DEFAULT_LEARNING_RATE = 1e-4

# Fields of a contract that were measured with the original weights, with the values that reset them.
_RESET_FIELDS: Mapping[str, object] = {
    "halo_errors": {},
    "parity": {},
    "scores": {},
    "calibration": None,
    "validation": None,
}


@dataclass(frozen=True)
class FineTunedModel:
    """A fine-tuned model in memory.

    Attributes:
        graph: ONNX graph, without the contract in its metadata.
        contract: contract of the model, whose `finetuned` describes the fine-tuning.
        lack_of_skill: message if the model is no better than a constant map on the area's other labelled patches.
    """

    graph: onnx.ModelProto
    contract: Contract
    lack_of_skill: str = ""


@dataclass(frozen=True)
class _Cell:
    """Square of an area with labelled pixels."""

    window: Window
    landslide_pixels: int


@dataclass(frozen=True)
class FineTuningOptions:
    """Options of a fine-tuning.

    Attributes:
        patches: number of labelled patches to train on.
        seed: seed of the selection, the order and the augmentation of the patches.
        steps: steps of the optimiser (Adam).
        learning_rate: learning rate of the optimiser.
    """

    patches: int
    seed: int
    steps: int = DEFAULT_STEPS
    learning_rate: float = DEFAULT_LEARNING_RATE


def finetune(
    project: Project,
    model: Model,
    area: str,
    options: FineTuningOptions,
    progress: Progress | None = None,
) -> FineTunedModel:
    """Fine-tune a model on labelled patches of an area.

    The area is cut into squares of `split.patch` pixels, or those of its patch data set. The squares with landslides
    are divided, in their order, into as many groups of neighbours as patches are requested, and one is drawn from each.
    Loss, augmentation and dropping are those of the project's recipe. If the original training areas are available and
    unchanged, half of every batch comes from them, so that the model forgets less, and its scores with subsets of its
    band groups are measured again; otherwise it requires all band groups from now on. The threshold is the best one on
    the patches that it was fine-tuned on. The calibration and the validation scores of the original are removed. The
    model is scored on the other labelled patches of the area, before and after.

    Args:
        project: project with the stack and mask of the area.
        model: float32 model.
        area: area of params.yaml with an inventory.
        options: number of patches, seed, steps and learning rate.
        progress: callback with the number of finished steps and of all steps.

    Raises:
        ParamsError: There is no such area.
        StudyError: The area decides promotion, was trained on or has too few patches with landslides, or the exported
            file differs from the Keras model.
        ModelError: The model cannot be fine-tuned, or was fine-tuned already.
        MismatchError: The area's stack does not fit the model.
        SourceError: A raster cannot be read.
    """
    _check_can_finetune(project, model, area)
    architecture = model.contract.origin.network
    precision = project.params.training.mixed_precision
    network = from_onnx(onnx.load(model.path), architecture, str(model.path), precision)
    cells, side = _labelled_cells(project, model, area)
    chosen = _draw_cells(cells, options.patches, options.seed, area)
    selected = _read_cells(project, model.contract, area, [cell.window for cell in chosen], side)
    new, rehearsed = _crop_to_alignment(selected, model.contract.input.alignment), _rehearsal_patches(project, model)
    _train(network, project.params, model.contract, [new, *rehearsed], options, progress)
    graph = to_onnx(network)
    others = [cell.window for cell in cells if cell not in chosen]
    site = Site.of(project, area)
    before = _assess(model, site, others).confusion
    draft = model.contract.without_optional_groups().replace(**_RESET_FIELDS, weights=weights_digest(graph))
    with tempfile.TemporaryDirectory(prefix="talud-") as folder:
        path = Path(folder) / "finetuned.onnx"
        save_model(graph, draft, path)
        learned = labelled_windows(site, [cell.window for cell in chosen], Model.load(path))
        threshold = metrics.best_threshold(probability_histogram(learned))
        draft = draft.replace(threshold=threshold)
        save_model(graph, draft, path)
        shipped = Model.load(path)
        measurements: dict[str, object] = {
            "parity": check_parity(from_onnx(graph, architecture, str(path)), shipped, new)
        }
        if rehearsed:
            measurements |= _validation_entries(shipped, project, _optional_groups(model.contract))
        after = _assess(shipped, site, others).confusion
    finetuned = FineTuning(
        weights=model.contract.origin.weights,
        model=model.name,
        version=model.version,
        area=area,
        labels=md5(project.mask(area)),
        patches=options.patches,
        cells=tuple((int(cell.window.row_off), int(cell.window.col_off)) for cell in chosen),
        side=side,
        landslide_pixels=selected.landslide_pixels,
        seed=options.seed,
        steps=options.steps,
        learning_rate=options.learning_rate,
        recipe=project.params.recipe,
        rehearsed=model.contract.origin.areas if rehearsed else (),
        f1_before=before.f1 if before.tp + before.fn else None,
        f1_after=after.f1 if after.tp + after.fn else None,
    )
    return FineTunedModel(graph, draft.replace(**measurements, finetuned=finetuned), metrics.lack_of_skill(after))


def _check_can_finetune(project: Project, model: Model, area: str) -> None:
    role, earlier = project.params.area(area).role, model.contract.derived.finetuned
    if role == "gate":
        raise StudyError(f"{area}: its role is gate, so no model is fine-tuned on it; use another area")
    if area in model.contract.origin.areas:
        raise StudyError(f"{area}: {model.title} was trained on it; choose a new area")
    if earlier:
        raise ModelError(
            f"{model.path}: was already fine-tuned on {earlier.area}; fine-tune its original, {earlier.model} "
            f"{earlier.version}, on more patches"
        )


def _optional_groups(contract: Contract) -> tuple[Group, ...]:
    """Return the band groups that a model can do without."""
    return tuple(group for group in contract.input.groups if group not in contract.input.required_groups)


def _labelled_cells(project: Project, model: Model, area: str) -> tuple[list[_Cell], int]:
    """Return the labelled squares of an area, and their side."""
    contract = model.contract
    with open_stack(check_current_stack(project, area), contract) as stack, open_raster(project.mask(area)) as mask:
        if Grid.of(mask) != stack.grid:
            raise StudyError(f"{mask.name}: its grid differs from that of the stack; run talud stack {area} again")
        if stack.info.missing_groups:
            raise StudyError(
                f"{area}: its stack lacks {', '.join(stack.info.missing_groups)}, which the model needs; add the source"
            )
        side = stack.info.patch or project.params.split.patch
        if side < contract.input.alignment:
            raise StudyError(
                f"{area}: its patches have a side of {side} pixels, but the network of the model needs at least "
                f"{contract.input.alignment}; make split.patch larger, or the patches of a data set"
            )
        cells = []
        for window in stack.grid.windows(side):
            truth = mask.read(1, window=window)
            if truth.shape == (side, side) and (truth != metrics.UNKNOWN).any():
                labelled = (truth != metrics.UNKNOWN) & (coverage.unmapped_codes(stack.read(window), contract) == 0)
                if labelled.any():
                    cells.append(_Cell(window, int(np.count_nonzero(labelled & (truth == metrics.LANDSLIDE)))))
    return cells, side


def _draw_cells(cells: Sequence[_Cell], patches: int, seed: int, area: str) -> list[_Cell]:
    with_landslides = [cell for cell in cells if cell.landslide_pixels]
    if len(with_landslides) < patches:
        raise StudyError(
            f"{area}: {len(with_landslides)} of its {len(cells)} labelled patches hold landslides, fewer than the "
            f"{patches} requested; use fewer patches, or label more"
        )
    generator = np.random.default_rng(seed)
    runs = np.array_split(np.arange(len(with_landslides)), patches)
    return [with_landslides[int(generator.choice(run))] for run in runs]


def _read_cells(project: Project, contract: Contract, area: str, windows: Sequence[Window], side: int) -> Patches:
    """Read squares of an area as patches, without unusable ones."""
    site = Site.of(project, area)
    site = replace(site, split=site.split.model_copy(update={"patch": side}))
    blocks = [Block(window, "validation") for window in windows]
    return site.cut_patches(contract.input.band_names, "validation", _optional_groups(contract), blocks)


def _rehearsal_patches(project: Project, model: Model) -> list[Patches]:
    """Return the patches that the model was trained on.

    The list is empty if they are unavailable or changed, or if the model was adapted to another area.
    """
    if model.contract.derived.adapted:
        return []
    try:
        check_held_out(model.contract, model.path, project)
    except StudyError:
        return []
    sites = [Site.of(project, area) for area in model.contract.origin.areas]
    return [join_patches(sites, model.contract.input.band_names, "training", _optional_groups(model.contract))]


def _train(
    network: keras.Model,
    params: Params,
    contract: Contract,
    sources: Sequence[Patches],
    options: FineTuningOptions,
    progress: Progress | None,
) -> None:
    """Train on equal numbers of patches from each source.

    The patches are augmented by the recipe and cut to the side of the smallest ones.
    """
    recipe = params.chosen_recipe
    keras.utils.set_random_seed(options.seed)
    optimizer = keras.optimizers.Adam(options.learning_rate)
    if params.training.mixed_precision == "float16":  # scaling keeps small gradients from underflowing
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    network.compile(optimizer=optimizer, loss=Loss(recipe.loss), jit_compile=False)
    optimizer.build(network.trainable_variables)  # as in `trial.compile_network`
    side = min(source.mask.shape[1] for source in sources)
    generators = [np.random.default_rng([options.seed, number]) for number in range(len(sources))]
    mean, deviation = (
        np.array([getattr(band, name) for band in contract.input.bands]) for name in ("mean", "deviation")
    )
    augmenter = Augmenter.of(recipe.augmentation, contract.input.band_names, mean, deviation)
    dropping = Dropping.of(recipe.dropping, contract.input.band_names)
    with defer_sigint() as release:
        for step in tracked(range(options.steps), progress, options.steps):
            stack, mask = _draw_batch(sources, side, augmenter, generators)
            if dropping:
                stack, mask = dropping.apply(stack, mask, (options.seed, step))
            if not np.isfinite(network.train_on_batch(stack, mask[..., np.newaxis])):
                raise StudyError(f"the loss of step {step + 1} is not a number; try a lower learning rate")
            release()


def _draw_batch(
    sources: Sequence[Patches], side: int, augmenter: Augmenter, generators: Sequence[np.random.Generator]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draw, augment and crop equal numbers of patches from each source."""
    stacks, masks = [], []
    for source, generator in zip(sources, generators, strict=True):
        indices = generator.integers(len(source), size=BATCH_SIZE // len(sources))
        changed = augmenter(source, indices, generator)
        for stack, mask in zip(changed.stack, changed.mask, strict=True):
            row, column = generator.integers(len(mask) - side + 1, size=2)
            cut = slice(row, row + side), slice(column, column + side)
            stacks.append(stack[cut])
            masks.append(mask[cut])
    return np.stack(stacks), np.stack(masks)


def _crop_to_alignment(patches: Patches, alignment: int) -> Patches:
    """Crop patches to a multiple of the alignment."""
    side = patches.mask.shape[1] // alignment * alignment
    return Patches(patches.stack[:, :side, :side], patches.mask[:, :side, :side])


def _assess(model: Model, site: Site, windows: Sequence[Window]) -> Assessment:
    """Score a model on windows at its own threshold."""
    (assessment,) = assess(labelled_windows(site, windows, model), [model.contract.measured.threshold])
    return assessment


def _validation_entries(model: Model, project: Project, optional: Sequence[Group]) -> dict[str, object]:
    """Return the contract's scores on the original validation blocks.

    If the model can do without some band groups, the scores of each subset are included.
    """
    sites = [Site.of(project, area) for area in model.contract.origin.areas]
    counts = Assessment.total(_assess(model, site, site.windows("validation")) for site in sites)
    entries: dict[str, object] = {"scores": counts.confusion.scores()}
    if optional:
        scored = subsets.score_subsets(model, sites, optional, project.params.chosen_recipe.dropping.tolerance)
        entries |= {"subsets": scored, "required_groups": subsets.required_groups(scored)}
    return entries
