"""Measurements of training on the synthetic training basin."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml
from measures import MAX_ATTEMPTS, MIN_BUSY_CORES, REPEATS, Figure, Inputs, Stopwatch, busy_cores

from talud.data import stack
from talud.project import Project

BAND_SET, AREA = "7band", "synthetic_argelia"
SEARCH = {"filters": [16], "learning_rate": [1e-3, 5e-4, 1e-4], "batch_size": [16], "epochs": 2}
PARAMS = Path(__file__).parent.parent / "params.yaml"
TIME_STEPS = """
import statistics, sys, time
import numpy as np
from talud.project import Project
from talud.training.dataset import Dataset
from talud.training.search import Hyperparameters
from talud.training.trial import TrialConfig, compile_network
project = Project.find()
dataset = Dataset.load(project, sys.argv[1])
hyperparameters, params = Hyperparameters(8, 1e-3, 16, 1, None), project.params
model = compile_network(TrialConfig.of(project, hyperparameters, dataset.bands), dataset.statistics, 1)
stack, mask = dataset.training.stack[:16], dataset.training.mask[:16, ..., np.newaxis]
seconds = []
for _ in range(12):
    begun = time.perf_counter()
    model.train_on_batch(stack, mask)
    seconds.append(time.perf_counter() - begun)
print(statistics.median(seconds[2:]))
"""


def training(inputs: Inputs) -> Iterator[Figure]:
    """Measure oneDNN, the input pipeline, and the overhead of a trial."""
    project = _project(inputs.folder / "project")
    yield _measure_onednn(project)
    yield from _measure_throughput(project)
    yield from _measure_overhead(project)


def _measure_onednn(project: Project) -> Figure:
    """Compare a training step with and without oneDNN convolutions."""

    def step(setting: str) -> float:
        environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": setting}
        command = [sys.executable, "-c", TIME_STEPS, BAND_SET]
        said = subprocess.run(command, cwd=project.root, env=environment, check=True, capture_output=True, text=True)
        return float(said.stdout)

    pairs = [(step("0"), step("1")) for _ in range(REPEATS)]
    without, with_it = (statistics.median(times) for times in zip(*pairs, strict=True))
    how = f"16 patches of 64² (synthetic), {BAND_SET}, 8 filters: {with_it:.3f} s against {without:.3f} s; {REPEATS} "
    how += "processes in turn, medians of medians of 10 steps"
    return Figure.at_least("training step with oneDNN against one without", without / with_it, 0.95, "×", how)


def _measure_throughput(project: Project) -> Iterator[Figure]:
    """Compare steps per second of `TrainingBatches` with Keras on the same arrays."""
    from talud.training.augmentation import Augmenter
    from talud.training.batches import TrainingBatches
    from talud.training.dataset import Dataset
    from talud.training.search import Hyperparameters
    from talud.training.trial import TrialConfig, compile_network

    dataset, seed = Dataset.load(project, BAND_SET), project.params.seed
    patches, (rate, *_), (size,) = dataset.training, SEARCH["learning_rate"], SEARCH["batch_size"]
    chosen = Hyperparameters(SEARCH["filters"][0], rate, size, 1, None)
    recipe = project.params.chosen_recipe
    model = compile_network(
        TrialConfig.of(project, chosen, dataset.bands), dataset.statistics, math.ceil(len(patches) / size)
    )
    augmenter = Augmenter.of(recipe.augmentation, dataset.bands, dataset.statistics.mean, dataset.statistics.deviation)
    batches = TrainingBatches(patches, size, augmenter=augmenter, seed=seed)
    truth = patches.mask[..., np.newaxis]
    works = (
        partial(model.fit, batches, shuffle=False, verbose=0),
        partial(model.fit, patches.stack, truth, batch_size=size, verbose=0),
    )
    ours, theirs, attempts = Stopwatch(), Stopwatch(), 0
    for work in works:
        work()
    while min(len(ours.seconds), len(theirs.seconds)) < REPEATS and attempts < MAX_ATTEMPTS:
        attempts += 1
        for watch, work in zip((ours, theirs), works, strict=True):
            watch.run(work, at_least=MIN_BUSY_CORES)
    name = "training steps per second against bare fit on the same arrays in memory"
    how = f"{len(patches)} patches of {patches.mask.shape[1]}² (synthetic), {chosen.filters} filters, batch {size}"
    how += f"; {len(ours.seconds)} and {len(theirs.seconds)} of {attempts} epochs in turn count"
    if not (ours.seconds and theirs.seconds):
        yield Figure.at_least(
            name, 0, 0.95, "×", f"{how}: they never had {MIN_BUSY_CORES} cores, so nothing was measured"
        )
        return
    speeds = " and ".join(f"{len(batches) / watch.median:.2f}" for watch in (ours, theirs))
    how += f"; {speeds} steps per second, medians; {busy_cores(ours, theirs)}"
    yield Figure.at_least(name, theirs.median / ours.median, 0.95, "×", how)


def _measure_overhead(project: Project) -> Iterator[Figure]:
    """Measure the time between trials, and from the last epoch to the end of a study."""
    from talud.training import study

    ends: dict[tuple[int, int], float] = {}

    def note(progress: study.StudyProgress) -> None:
        ends[progress.trial, progress.epoch] = time.perf_counter()

    study.run(project, BAND_SET, on_progress=note)
    finished = time.perf_counter()
    trials = sorted({trial for trial, _ in ends})
    epoch = statistics.median(ends[trial, 2] - ends[trial, 1] for trial in trials)
    between = statistics.median(ends[after, 1] - ends[before, 2] - epoch for before, after in pairwise(trials))
    how = f"a study of {len(trials)} trials of 2 epochs of {epoch:.1f} s, {BAND_SET}, MLflow in a SQLite file; "
    yield Figure.at_most(
        "time of a trial beside its epochs (start, compilation, logging)", between, 10, "s", f"{how}median"
    )
    export = finished - max(ends.values())
    yield Figure.at_most("time of a study after its last epoch (export, checks)", export, 30, "s", f"{how}one run")


def _project(root: Path) -> Project:
    """Return a project with the stack of the training basin and a small search."""
    root.mkdir()
    content = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    content["search"], content["searches"] = "bench", {"bench": SEARCH}
    content["areas"] = {AREA: content["areas"][AREA]}
    (root / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "synthetic", "--out", root / "data"], cwd=PARAMS.parent, check=True)
    project = Project.find(root)
    stack.build_stack(project, AREA)
    return project
