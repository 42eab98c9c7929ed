"""A few labels of a new area: a model trained further on some of its patches, mixed with what it knows already."""

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
from talud.data.record import check_held_out, current_stack
from talud.engine import coverage
from talud.engine.model_file import save, weights_digest
from talud.engine.runtime import Model
from talud.errors import ModelError, StudyError
from talud.files import md5
from talud.grid import Grid
from talud.mapping.reader import open_stack
from talud.measurement import subsets
from talud.measurement.assessment import Assessment
from talud.measurement.sites import Site, assess, join_patches, labelled_windows, probability_histogram
from talud.params import Params
from talud.process import defer_sigint
from talud.progress import Progress, tracked
from talud.project import Project
from talud.raster import open_raster
from talud.training.batches import Augmenter, Dropping
from talud.training.export import check_parity
from talud.training.onnx_graph import from_onnx, to_onnx
from talud.training.unet import Loss

BATCH_SIZE = 16  # patches of a step; half of them are rehearsed, where there are any
DEFAULT_STEPS = 200
DEFAULT_LEARNING_RATE = 1e-4  # a tenth or less of what trainings begin with: the model is to be bent, not made anew

# What a contract states of the file that it came with, and no longer of one that was trained further.
_RESET_FIELDS: Mapping[str, object] = {
    "halo_errors": {},
    "parity": {},
    "scores": {},
    "calibration": None,
    "validation": None,
}


@dataclass(frozen=True)
class FineTunedModel:
    """A model trained further, in memory.

    Attributes:
        graph: of it; its metadata hold no contract yet.
        contract: of it; `finetuned` says how it came about.
        lack_of_skill: that it is no better than a constant map on the area's other labelled patches, in words.
    """

    graph: onnx.ModelProto
    contract: Contract
    lack_of_skill: str = ""


@dataclass(frozen=True)
class _Cell:
    """A square of an area whose truth is known somewhere."""

    window: Window
    landslide_pixels: int


@dataclass(frozen=True)
class FineTuningOptions:
    """Choices of a fine-tuning.

    Attributes:
        patches: number of labelled patches to train on.
        seed: seed of the draw, the order of the patches and their changes.
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
    """Train a model further on labelled patches of an area, and measure it on the area's other labelled patches.

    The area is cut into squares of `split.patch` pixels; a patch data set consists of such squares already. Those with
    landslides are dealt, in their order, into as many runs of neighbours as patches are wanted, and one is drawn from
    each. Loss, augmentation and dropping are those of the project's recipe. Where the areas that the model learned from
    are at hand as they were, half of every batch is theirs, so that it forgets less, and what it is worth with some of
    its groups alone is measured again; else it needs all of them from now on. The threshold is the best one on the
    patches that it was trained on. Its calibration, and what its validation blocks said of it, no longer hold and go.

    Args:
        project: with the stack and mask of the area.
        model: a float32 file.
        area: of params.yaml, with an inventory.
        options: number of patches, seed, steps and learning rate.
        progress: told, after each step, how many are done and how many there are.

    Raises:
        ParamsError: no such area.
        StudyError: the area decides promotion, was trained on, or has fewer patches with landslides, or the exported
            file differs from Keras.
        ModelError: the model is none that can be trained further, or was fine-tuned already.
        MismatchError: the area's stack does not fit the model.
        SourceError: a raster cannot be read.
    """
    _check_can_finetune(project, model, area)
    network = from_onnx(onnx.load(model.path), str(model.path), project.params.training.mixed_precision)
    cells, side = _labelled_cells(project, model, area)
    chosen = _draw_cells(cells, options.patches, options.seed, area)
    drawn = _read_cells(project, model.contract, area, [cell.window for cell in chosen], side)
    new, rehearsed = _crop_to_alignment(drawn, model.contract.input.alignment), _rehearsal_patches(project, model)
    _train(network, project.params, model.contract, [new, *rehearsed], options, progress)
    graph = to_onnx(network)
    others = [cell.window for cell in cells if cell not in chosen]
    site = Site.of(project, area)
    before = _assess(model, site, others).confusion
    draft = model.contract.without_optional_groups().replace(**_RESET_FIELDS, weights=weights_digest(graph))
    with tempfile.TemporaryDirectory(prefix="talud-") as folder:
        path = Path(folder) / "finetuned.onnx"
        save(graph, draft, path)
        learned = labelled_windows(site, [cell.window for cell in chosen], Model.load(path))
        threshold = metrics.best_threshold(probability_histogram(learned))
        draft = draft.replace(threshold=threshold)
        save(graph, draft, path)
        shipped = Model.load(path)
        found: dict[str, object] = {"parity": check_parity(from_onnx(graph, str(path)), shipped, new)}
        if rehearsed:
            found |= _validation_entries(shipped, project, _optional_groups(model.contract))
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
        landslide_pixels=drawn.landslide_pixels,
        seed=options.seed,
        steps=options.steps,
        learning_rate=options.learning_rate,
        recipe=project.params.recipe,
        rehearsed=model.contract.origin.areas if rehearsed else (),
        f1_before=before.f1 if before.tp + before.fn else None,
        f1_after=after.f1 if after.tp + after.fn else None,
    )
    return FineTunedModel(graph, draft.replace(**found, finetuned=finetuned), metrics.lack_of_skill(after))


def _check_can_finetune(project: Project, model: Model, area: str) -> None:
    role, known = project.params.area(area).role, model.contract.derived.finetuned
    if role == "gate":
        raise StudyError(f"{area}: decides which version is the champion, so no model is fine-tuned on it")
    if area in model.contract.origin.areas:
        raise StudyError(f"{area}: {model.title} was trained on it already; name an area that is new to it")
    if known:
        raise ModelError(
            f"{model.path}: was fine-tuned on {known.area} already; fine-tune what it was made from, {known.model} "
            f"{known.version}, on more patches"
        )


def _optional_groups(contract: Contract) -> tuple[Group, ...]:
    """The groups that a model can do without."""
    return tuple(group for group in contract.input.groups if group not in contract.input.required_groups)


def _labelled_cells(project: Project, model: Model, area: str) -> tuple[list[_Cell], int]:
    """The squares of an area that hold a pixel that is mapped and whose truth is known; their side."""
    contract = model.contract
    with open_stack(current_stack(project, area), contract) as stack, open_raster(project.mask(area)) as mask:
        if Grid.of(mask) != stack.grid:
            raise StudyError(f"{mask.name}: lies on another grid than the stack; run talud stack {area} again")
        if stack.info.absent:
            raise StudyError(
                f"{area}: its stack lacks {', '.join(stack.info.absent)}, which the model reads; add the source"
            )
        side = stack.info.patch or project.params.split.patch
        cells = []
        for place in stack.grid.windows(side):
            truth = mask.read(1, window=place)
            if truth.shape == (side, side) and (truth != metrics.UNKNOWN).any():
                known = (truth != metrics.UNKNOWN) & (coverage.blocked(stack.read(place), contract) == 0)
                if known.any():
                    cells.append(_Cell(place, int(np.count_nonzero(known & (truth == metrics.LANDSLIDE)))))
    return cells, side


def _draw_cells(cells: Sequence[_Cell], patches: int, seed: int, area: str) -> list[_Cell]:
    with_landslides = [cell for cell in cells if cell.landslide_pixels]
    if len(with_landslides) < patches:
        raise StudyError(
            f"{area}: {len(with_landslides)} of its {len(cells)} labelled patches hold landslides, {patches} are "
            "wanted; ask for fewer, or label more"
        )
    generator = np.random.default_rng(seed)
    runs = np.array_split(np.arange(len(with_landslides)), patches)
    return [with_landslides[int(generator.choice(run))] for run in runs]


def _read_cells(project: Project, contract: Contract, area: str, windows: Sequence[Window], side: int) -> Patches:
    """Whole squares of an area, without those that hold nothing to learn from."""
    site = Site.of(project, area)
    site = replace(site, split=site.split.model_copy(update={"patch": side}))
    blocks = [Block(window, "validation") for window in windows]
    return site.patches(contract.input.band_names, "validation", _optional_groups(contract), blocks)


def _rehearsal_patches(project: Project, model: Model) -> list[Patches]:
    """All patches that the model was trained on, as one; none where they cannot be had as they were, or now look so."""
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
    """Train on as many patches of each source, all cut to the side of the smallest, as the recipe changes them."""
    recipe = params.learning
    keras.utils.set_random_seed(options.seed)
    optimizer = keras.optimizers.Adam(options.learning_rate)
    if params.training.mixed_precision == "float16":  # which would lose the smallest gradients
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    network.compile(optimizer=optimizer, loss=Loss(recipe.loss), jit_compile=False)
    optimizer.build(network.trainable_variables)  # as in `trial.compiled`
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
                raise StudyError(f"the loss of step {step + 1} is not a number; a lower learning rate may help")
            release()


def _draw_batch(
    sources: Sequence[Patches], side: int, augmenter: Augmenter, generators: Sequence[np.random.Generator]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """As many patches of each source, each drawn anew, changed, and cut somewhere; stack and mask."""
    stacks, masks = [], []
    for source, generator in zip(sources, generators, strict=True):
        places = generator.integers(len(source), size=BATCH_SIZE // len(sources))
        changed = augmenter(source, places, generator)
        for stack, mask in zip(changed.stack, changed.mask, strict=True):
            row, column = generator.integers(len(mask) - side + 1, size=2)
            cut = slice(row, row + side), slice(column, column + side)
            stacks.append(stack[cut])
            masks.append(mask[cut])
    return np.stack(stacks), np.stack(masks)


def _crop_to_alignment(patches: Patches, alignment: int) -> Patches:
    """Patches whose side the network takes, cut at the right and the bottom."""
    side = patches.mask.shape[1] // alignment * alignment
    return Patches(patches.stack[:, :side, :side], patches.mask[:, :side, :side])


def _assess(model: Model, site: Site, windows: Sequence[Window]) -> Assessment:
    """Score a model, at its own threshold, on windows of a site that are each read alone."""
    (found,) = assess(labelled_windows(site, windows, model), [model.contract.measured.threshold])
    return found


def _validation_entries(model: Model, project: Project, optional: Sequence[Group]) -> dict[str, object]:
    """Return the contract's entries on the validation blocks of the areas that the model was first trained on.

    They are the scores and, if the model can do without some groups, the scores of each subset of them.
    """
    sites = [Site.of(project, area) for area in model.contract.origin.areas]
    counts = Assessment.total(_assess(model, site, site.windows("validation")) for site in sites)
    found: dict[str, object] = {"scores": counts.confusion.scores()}
    if optional:
        worth = subsets.score_subsets(model, sites, optional, project.params.learning.dropping.tolerance)
        found |= {"subsets": worth, "required_groups": subsets.required_groups(worth)}
    return found
