"""Studies: the trials of a search, and export of the best."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import keras

from talud.data.patches import SPLIT_PARTS
from talud.errors import ParamsError, StudyError, TaludWarning
from talud.files import atomic_replace_all, exclusive_lock
from talud.params.networks import LevelOptions, NetworkName, NetworkOptions
from talud.project import Project, current_commit
from talud.raster import open_raster, patch_side
from talud.registry import Store
from talud.training import checkpoint, trial_runner
from talud.training.checkpoint import study_key, trial_key
from talud.training.dataset import Dataset
from talud.training.examples import log_examples
from talud.training.export import ExportOrigin, export_model
from talud.training.search import (
    Hyperparameters,
    find_search,
    hyperparameter_sets,
    recorded_hyperparameters,
    rungs,
    survivors,
    total_epochs,
)
from talud.training.trial import TrialConfig
from talud.training.trial_runner import TrialResult, TrialRunner, TrialTask, run_here

BEST_WEIGHTS_ONLY = frozenset({"best"})  # arrays that remain in the checkpoint of the best trial


@dataclass(frozen=True)
class StudyProgress:
    """Progress of a study after an epoch.

    Attributes:
        trial: number of the trial, counted from 1.
        trials: number of all trials.
        name: name of the trial.
        epoch: number of the epoch in its trial, counted from 1.
        f1: validation F1 of the epoch.
        best_f1: highest validation F1 of the study so far.
        done: number of finished epochs of the study, including skipped epochs of trials that stopped early.
        total: number of all epochs of the study.
    """

    trial: int
    trials: int
    name: str
    epoch: int
    f1: float
    best_f1: float
    done: int
    total: int


@dataclass(frozen=True)
class Study:
    """Results of a finished study.

    Attributes:
        parent_run_id: MLflow run of the study.
        search: name of the search.
        results: results of all trials, in the order of the search.
        best: trial with the highest validation F1; of equal ones, that of the smallest network, then the first.
    """

    parent_run_id: str
    search: str
    results: tuple[TrialResult, ...]
    best: TrialResult


ProgressCallback = Callable[[StudyProgress], None]


def run(
    project: Project,
    band_set: str,
    search: str | None = None,
    on_progress: ProgressCallback | None = None,
    runner: TrialRunner = run_here,
) -> Study:
    """Run a study; write its best model and table of trials.

    An interrupted study resumes: finished trials are not run again, and an unfinished one resumes from its checkpoint,
    if the data, split, hyperparameters and training code have not changed. After an error both files are unchanged.

    Args:
        project: project whose training areas have stacks.
        band_set: name of the band set.
        search: name of the search; default: `search` of params.yaml.
        on_progress: callback with the progress after each epoch.
        runner: runner of the trials; default: this process.

    Raises:
        ParamsError: There is no such band set or search.
        StudyError: A stack is missing or unsuitable, too many trials failed, the exported file differs from the Keras
            model, or the same study is already running.
        SourceError: A stack or mask cannot be read.
        RegistryError: The store of runs cannot be used.
        OutputError: The files cannot be written.
    """
    search = search or project.params.search
    candidates = hyperparameter_sets(find_search(project.params, search), project.params.seed)
    bands = project.params.band_set(band_set)
    networks = _networks(project, candidates, bands)
    _check_patch_sides(project, networks)
    dataset = trial_runner.load_dataset(project, band_set)
    keys = [trial_key(project, dataset.bands, dataset.version, hyperparameters) for hyperparameters in candidates]
    tags = {
        "band_set": band_set,
        "search": search,
        "study": study_key(keys, search),
        "data_version": dataset.version,
        "commit": current_commit(project.root),
        **({"data": "synthetic"} if dataset.synthetic else {}),
        **_split_tags(dataset.counts(project.params.split)),
    }
    name, note = f"{band_set} · {search}", _run_description(project, dataset, tags)
    store = Store.open(project.root, create=True)
    lock = project.checkpoint(band_set).with_suffix(".lock")
    busy = StudyError(f"another process trains '{band_set}' in {project.root}; wait until it is done, then start again")
    with exclusive_lock(lock, busy), store.runs.study(name, tags, note) as parent:
        tasks = [
            TrialTask(project, band_set, hyperparameters, key, hyperparameters.epochs, parent, tags)
            for hyperparameters, key in zip(candidates, keys, strict=True)
        ]
        results = _run_search(project, search, tasks, runner, on_progress)
        study = Study(parent, search, results, _best(results))
        with atomic_replace_all(project.model(band_set), project.trials(band_set)) as (model, table):
            origin = ExportOrigin(
                TrialConfig.of(project, study.best.hyperparameters, dataset.bands).network,
                band_set,
                tags["commit"],
                study.best.run_id,
                recorded_hyperparameters(project.params, study.best.hyperparameters, dataset.bands),
            )
            export_model(_best_model(project, dataset, study.best), dataset, project, origin, model)
            log_examples(store, dataset, model, parent, study.best.run_id)
            content = _trials_table(study, band_set, dataset.version, project.params.seed)
            table.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return study


def _networks(
    project: Project, candidates: Sequence[Hyperparameters], bands: Sequence[str]
) -> dict[NetworkName, NetworkOptions]:
    """Return the options of each network of a search.

    A network that starts from random weights although its settings state others is named in a warning.

    Raises:
        ParamsError: The depth does not suit a network.
    """
    training, found = project.params.training, {}
    for one in candidates:
        if one.network not in found:
            found[one.network] = options = training.network_options(one.network, one.filters, bands)
            if reason := training.networks.lost_weights(one.network, options, bands):
                warnings.warn(f"{one.network} starts from random weights: {reason}", TaludWarning, stacklevel=3)
    return found


def _check_patch_sides(project: Project, networks: Mapping[NetworkName, NetworkOptions]) -> None:
    """Check that the sides of all patches suit each network.

    Raises:
        ParamsError: A side does not suit a network.
        SourceError: A stack cannot be read.
    """
    sides = {"split.patch": (project.params.split.patch, "change split.patch")}
    for area in project.params.areas_with_role("training"):
        path = project.stack(area)
        if path.is_file():  # else the data set states that it is missing
            with open_raster(path) as stack:
                if side := patch_side(stack):
                    sides[f"{path}: the side of its patches"] = side, "cut them to another side"
    for name, (side, remedy) in sides.items():
        for network, options in networks.items():
            if side % options.alignment:
                depth = f" of depth {options.depth}" if isinstance(options, LevelOptions) else ""
                raise ParamsError(
                    f"{name} is {side} pixels, but the network {network}{depth} needs a multiple of "
                    f"{options.alignment}; {remedy}, or change training.depth or the network in params.yaml"
                )


def _run_search(
    project: Project, search: str, tasks: Sequence[TrialTask], runner: TrialRunner, on_progress: ProgressCallback | None
) -> tuple[TrialResult, ...]:
    """Run all rungs of a search; return the results in its order.

    Raises:
        StudyError: Too many trials failed.
    """
    options = find_search(project.params, search)
    steps = rungs(options, len(tasks))
    progress, remaining = _ProgressTracker(tasks, total_epochs(steps), on_progress), tuple(tasks)
    results: dict[str, TrialResult] = {}
    pruner = _CheckpointPruner(project)
    before = 0
    for step in steps:
        f1 = [results[task.key].state.best_f1_up_to(before) if before else 0 for task in remaining]
        remaining, before = survivors(remaining, f1, step.trials), step.epochs
        waiting = {task.key for task in remaining}
        for result in runner([replace(task, max_epochs=step.epochs) for task in remaining], progress.report_epoch):
            results[result.key] = result
            progress.mark_finished(result.key, step.epochs)
            _check_failures([one for one in results.values() if one.failure], len(tasks), options.failures)
            if step == steps[-1]:
                waiting.remove(result.key)
                pruner.prune_weights([one for one in results.values() if one.key not in waiting and not one.failure])
        remaining = tuple(task for task in remaining if not results[task.key].failure)
    best = _best(tuple(results.values()))
    # If the best trial was not the best of an earlier study, that study deleted its weights.
    while checkpoint.read(project.checkpoint(best.key)).best is None:
        project.checkpoint(best.key).unlink(missing_ok=True)
        again = [replace(task, max_epochs=len(best.state.epochs)) for task in tasks if task.key == best.key]
        (results[best.key],) = runner(again, progress.report_epoch)
        if not results[best.key].failure and not project.checkpoint(best.key).is_file():
            raise StudyError(
                f"{project.checkpoint(best.key)}: not found, so a worker wrote it to another disk; "
                "let all workers share one disk"
            )
        _check_failures([one for one in results.values() if one.failure], len(tasks), options.failures)
        best = _best(tuple(results.values()))
    return tuple(results[task.key] for task in tasks)


class _ProgressTracker:
    """Progress of all trials of a study, reported to a callback."""

    def __init__(self, tasks: Sequence[TrialTask], total: int, on_progress: ProgressCallback | None) -> None:
        self._names = {task.key: task.hyperparameters.name for task in tasks}
        self._epochs = dict.fromkeys(self._names, 0)
        self._total, self._on_progress, self._best = total, on_progress, 0.0

    def report_epoch(self, key: str, epoch: int, f1: float) -> None:
        """Record an epoch of a trial and call the callback."""
        self._epochs[key], self._best = epoch, max(self._best, f1)
        if self._on_progress:
            trial, done = list(self._names).index(key) + 1, sum(self._epochs.values())
            name, trials = self._names[key], len(self._names)
            self._on_progress(StudyProgress(trial, trials, name, epoch, f1, self._best, done, self._total))

    def mark_finished(self, key: str, epochs: int) -> None:
        """Record that a trial has reached an epoch."""
        self._epochs[key] = epochs


def _check_failures(failed: Sequence[TrialResult], trials: int, limit: int) -> None:
    if failed and len(failed) == trials:
        raise StudyError(f"all {trials} trials failed; the last one: {failed[-1].failure}")
    if len(failed) > limit:
        raise StudyError(
            f"{len(failed)} of {trials} trials failed, more than the {limit} that `failures` of the search allows; the "
            f"last one: {failed[-1].failure}"
        )


def _best(results: Sequence[TrialResult]) -> TrialResult:
    def rank(result: TrialResult) -> tuple[float, int]:
        return -result.state.scores["f1"], result.state.weight_count

    return min((result for result in results if not result.failure), key=rank)


class _CheckpointPruner:
    """Pruner of the weights in finished trials' checkpoints."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._best: dict[str, bool] = {}  # pruned trials by key; True for the best trial of that moment

    def prune_weights(self, done: Sequence[TrialResult]) -> None:
        """Delete the weights of finished trials except the best trial's.

        Only checkpoints that changed since the last call, and that of the former best trial, are read.
        """
        best = _best(done) if done else None
        for result in done:
            is_best = result is best
            if self._best.get(result.key) is not is_best and result.stored_arrays > (
                BEST_WEIGHTS_ONLY if is_best else frozenset()
            ):
                path = self._project.checkpoint(result.key)
                weights = checkpoint.read(path).best if is_best else None
                checkpoint.write(path, replace(result.state, best=weights))
            self._best[result.key] = is_best


def _best_model(project: Project, dataset: Dataset, result: TrialResult) -> keras.Model:
    """Return the trained Keras model of a trial, on the CPU.

    The TF32 arithmetic of a GPU is too imprecise for comparing it with the exported file.
    """
    with keras.device("cpu"):
        model = TrialConfig.of(project, result.hyperparameters, dataset.bands).build(dataset.statistics)
        model.set_weights(checkpoint.read(project.checkpoint(result.key)).best)
        return model


def _split_tags(counts: Mapping[str, int]) -> dict[str, str]:
    return {
        f"split_{part}": f"{counts[f'{part}_blocks']} blocks, {counts[f'{part}_patches']} patches, "
        f"{counts[f'{part}_landslide_pixels']} landslide pixels"
        for part in SPLIT_PARTS
    }


def _run_description(project: Project, dataset: Dataset, tags: Mapping[str, str]) -> str:
    """Return the description of a study's run, in Markdown."""
    rows = [f"| {part} | {tags[f'split_{part}']} |" for part in SPLIT_PARTS]
    return "\n".join(
        [
            *(["The data are synthetic.", ""] if dataset.synthetic else []),
            f"Bands: {', '.join(dataset.bands)}. Areas: {', '.join(dataset.blocks)}. Seed {project.params.seed}.",
            "",
            "| part | holds |",
            "| --- | --- |",
            *rows,
        ]
    )


def _trials_table(study: Study, band_set: str, data_version: str, seed: int) -> dict[str, object]:
    """Return the table of trials, in the order of the search."""
    return {
        "band_set": band_set,
        "search": study.search,
        "data_version": data_version,
        "seed": seed,
        "parent_run_id": study.parent_run_id,
        "best": study.best.run_id,
        "trials": [
            {
                "run_id": result.run_id,
                "name": result.hyperparameters.name,
                **asdict(result.hyperparameters),
                "best_epoch": result.state.best_epoch,
                "epochs_run": len(result.state.epochs),
                "seconds": round(result.state.seconds, 1),
                "parameters": result.state.weight_count,
                "scores": result.state.scores,
            }
            for result in study.results
            if not result.failure
        ],
        "failed": [
            {"run_id": result.run_id, "name": result.hyperparameters.name, "reason": result.failure}
            for result in study.results
            if result.failure
        ],
    }
