"""A study: every trial of a band set's search, on record in MLflow, and the best one exported."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import keras

from talud import registry
from talud.data.patches import PARTS
from talud.errors import ParamsError, StudyError
from talud.files import replacing_together
from talud.params import Search
from talud.project import Project
from talud.training.dataset import Dataset
from talud.training.export import Origin, export
from talud.training.trial import Hyperparameters, Trained, build, train


@dataclass(frozen=True)
class Progress:
    """How far a study is, after an epoch.

    Attributes:
        trial: counted from 1.
        trials: their number.
        name: the trial's.
        epoch: counted from 1.
        epochs: of each trial.
        f1: on the validation patches, of this epoch.
        best_f1: the trial's highest so far.
    """

    trial: int
    trials: int
    name: str
    epoch: int
    epochs: int
    f1: float
    best_f1: float


@dataclass(frozen=True)
class Entry:
    """A trial that has ended: what it came to, or why it failed."""

    run_id: str
    choice: Hyperparameters
    trained: Trained | None = None
    failure: str = ""

    @property
    def outcome(self) -> str:
        """In words."""
        if not self.trained:
            return f"failed: {self.failure}"
        f1, epoch = self.trained.scores["f1"], self.trained.best_epoch
        return f"validation F1 {f1:.3f} at epoch {epoch} of {self.choice.epochs}, {self.trained.seconds:.0f} s"


@dataclass(frozen=True)
class Study:
    """All trials of a band set, and the best of them.

    Attributes:
        best: of the highest validation F1; of equal ones, the smallest network, then the first of the search.
    """

    parent_run_id: str
    search: str
    entries: tuple[Entry, ...]
    best: Entry


Watch = Callable[[Progress], None]


def run(project: Project, band_set: str, search: str | None = None, watch: Watch | None = None) -> Study:
    """Run a study and write the best trial's model and the table of trials; after an error neither is changed.

    Args:
        project: whose training areas have stacks.
        band_set: the name of one of its band sets.
        search: the name of one of its searches; default: the one that params.yaml chooses.
        watch: told after each epoch how far it is.

    Raises:
        ParamsError: there is no such band set or search.
        StudyError: a stack is missing or unfit, all trials failed, or the exported file differs from the Keras model.
        SourceError: a stack or mask cannot be read.
        RegistryError: the store of runs cannot be used.
        OutputError: the files cannot be written.
    """
    search = search or project.params.search
    choices = _choices(project, search)
    _check_patch(project)
    dataset = Dataset.load(project, band_set)
    commit = registry.commit(project.root)
    tags = {
        "band_set": band_set,
        "search": search,
        "data_version": dataset.version,
        "commit": commit,
        **_split_tags(dataset.counts(project.params.split)),
    }
    with registry.study(project.root, f"{band_set} · {search}", tags, _note(project, dataset, tags)) as parent:
        entries = tuple(
            _trial(project, dataset, choice, parent, tags, _told(watch, number, len(choices), choice))
            for number, choice in enumerate(choices, start=1)
        )
        study = Study(parent, search, entries, _best(entries))
        with replacing_together(project.model(band_set), project.trials(band_set)) as (model, table):
            origin = Origin(band_set, commit, study.best.run_id, _hyperparameters(project, study.best.choice))
            export(_rebuilt(project, dataset, study.best), dataset, project, origin, model)
            content = _table(study, band_set, dataset.version, project.params.seed)
            table.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return study


def _choices(project: Project, name: str) -> tuple[Hyperparameters, ...]:
    """Every combination of a search, the last parameter running fastest."""
    searches: Mapping[str, Search] = project.params.searches
    if name not in searches:
        raise ParamsError(f"no search '{name}' in params.yaml; it has: {', '.join(searches)}")
    search = searches[name]
    grid = itertools.product(search.filters, search.learning_rate, search.batch_size)
    return tuple(Hyperparameters(*choice, epochs=search.epochs) for choice in grid)


def _check_patch(project: Project) -> None:
    """The U-Net halves a patch at each level, so its side must allow that."""
    patch, depth = project.params.split.patch, project.params.training.depth
    if patch % 2**depth:
        raise ParamsError(
            f"split.patch is {patch} pixels, but a U-Net of depth {depth} needs a multiple of {2**depth}; "
            "change split.patch or training.depth in params.yaml"
        )


def _trial(
    project: Project,
    dataset: Dataset,
    choice: Hyperparameters,
    parent: str,
    tags: Mapping[str, str],
    on_epoch: Callable[[int, Mapping[str, float]], None],
) -> Entry:
    """Run a trial on record; one whose loss is not finite is recorded as failed, and the study goes on."""
    options, entry = project.params.training, Entry("", choice)
    try:
        name = f"{tags['band_set']} · {choice.name}"
        with registry.trial(parent, name, _hyperparameters(project, choice), tags) as record:
            entry = Entry(record.run_id, choice)
            record.log_dataset("+".join(dataset.blocks), dataset.version, "stacks/training")

            def log(epoch: int, metrics: Mapping[str, float]) -> None:
                record.log_epoch(epoch, metrics)
                on_epoch(epoch, metrics)

            trained = train(
                dataset.training,
                dataset.validation,
                choice,
                dataset.statistics,
                depth=options.depth,
                augment=options.augment,
                seed=project.params.seed,
                on_epoch=log,
            )
            figures = {"best_epoch": trained.best_epoch, "seconds": trained.seconds, "parameters": trained.parameters}
            record.log_scores({**trained.scores, **figures})
            return replace(entry, trained=trained)
    except StudyError as error:
        return replace(entry, failure=str(error))


def _told(
    watch: Watch | None, trial: int, trials: int, choice: Hyperparameters
) -> Callable[[int, Mapping[str, float]], None]:
    """Pass a trial's epochs on to whoever watches the study."""
    best = 0.0

    def tell(epoch: int, metrics: Mapping[str, float]) -> None:
        nonlocal best
        best = max(best, metrics["val_f1"])
        if watch:
            watch(Progress(trial, trials, choice.name, epoch, choice.epochs, metrics["val_f1"], best))

    return tell


def _best(entries: tuple[Entry, ...]) -> Entry:
    def rank(trained: Trained) -> tuple[float, int]:
        return -trained.scores["f1"], trained.parameters

    finished = [(rank(entry.trained), entry) for entry in entries if entry.trained]
    if not finished:
        raise StudyError(f"all {len(entries)} trials failed; the last one: {entries[-1].failure}")
    return min(finished, key=lambda pair: pair[0])[1]


def _rebuilt(project: Project, dataset: Dataset, entry: Entry) -> keras.Model:
    """The Keras model of a trial, on the CPU: a GPU's TF32 arithmetic is too coarse to compare the file with."""
    assert entry.trained is not None
    with keras.device("cpu"):
        model = build(entry.choice, dataset.statistics, project.params.training.depth, project.params.seed)
        model.set_weights(entry.trained.weights)
    return model


def _hyperparameters(project: Project, choice: Hyperparameters) -> dict[str, float | int | str]:
    """All that decides a trial's weights, apart from the data."""
    options = project.params.training
    shared = {"depth": options.depth, "augment": "D4" if options.augment else "none"}
    return {**asdict(choice), "optimizer": "Adam", "loss": "Dice", **shared, **project.params.split_choices}


def _split_tags(counts: Mapping[str, int]) -> dict[str, str]:
    return {
        f"split_{part}": f"{counts[f'{part}_blocks']} blocks, {counts[f'{part}_patches']} patches, "
        f"{counts[f'{part}_landslide_pixels']} landslide pixels"
        for part in PARTS
    }


def _note(project: Project, dataset: Dataset, tags: Mapping[str, str]) -> str:
    """The study in Markdown, for a person who opens its run."""
    rows = [f"| {part} | {tags[f'split_{part}']} |" for part in PARTS]
    return "\n".join(
        [
            f"Bands: {', '.join(dataset.bands)}. Areas: {', '.join(dataset.blocks)}. Seed {project.params.seed}.",
            "",
            "| part | holds |",
            "| --- | --- |",
            *rows,
        ]
    )


def _table(study: Study, band_set: str, data_version: str, seed: int) -> dict[str, object]:
    """The table of trials, in the order of the search."""
    return {
        "band_set": band_set,
        "search": study.search,
        "data_version": data_version,
        "seed": seed,
        "parent_run_id": study.parent_run_id,
        "best": study.best.run_id,
        "trials": [
            {
                "run_id": entry.run_id,
                "name": entry.choice.name,
                **asdict(entry.choice),
                "best_epoch": entry.trained.best_epoch,
                "seconds": round(entry.trained.seconds, 1),
                "parameters": entry.trained.parameters,
                "scores": entry.trained.scores,
            }
            for entry in study.entries
            if entry.trained
        ],
        "failed": [
            {"run_id": entry.run_id, "name": entry.choice.name, "reason": entry.failure}
            for entry in study.entries
            if not entry.trained
        ],
    }
