"""Studies in processes that kill themselves at a chosen moment.

The processes are forked from one that has imported Keras but computed nothing, because importing it takes longer than
a short study.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")


def start(root: Path, moment: str, at: int) -> ForkServerProcess:
    """Start a study of the band set `both` that is killed.

    Args:
        root: folder of the project.
        moment: `epoch`, `write`, `send`, `scores` or `export`: the call that is counted.
        at: number of the call at which the process is killed.
    """
    _CONTEXT.set_forkserver_preload(["talud.training.study"])
    process = _CONTEXT.Process(target=_run, args=(root, moment, at, dict(os.environ)))
    process.start()
    return process


def _run(root: Path, moment: str, at: int, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    from talud.project import Project
    from talud.training import study, trial_runner

    left = at

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    places: dict[str, tuple[Any, str]] = {
        "write": (trial_runner.checkpoint, "write"),
        "send": (trial_runner.TrialRun, "log_epochs"),
        "scores": (trial_runner.TrialRun, "log_scores"),
        "export": (study, "export_model"),
    }
    if moment in places:
        owner, name = places[moment]
        former = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            result = former(*arguments, **options)
            count()
            return result

        setattr(owner, name, counted)
    study.run(Project.find(root), "both", on_progress=count if moment == "epoch" else None)
