"""A project folder: params.yaml, and where each result lies."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from talud.errors import ParamsError
from talud.files import exclusive_lock, writing
from talud.params import Area, Params

REFERENCES = "references"  # the folder of what the recipe is compared with


def root_around(folder: Path) -> Path | None:
    """The root of the project that an absolute folder lies in, if it lies in one."""
    return next((root for root in (folder, *folder.parents) if (root / "params.yaml").is_file()), None)


def identifier(root: Path) -> str:
    """By what a project's checkout is known in a store that it shares with others: 32 random hex digits.

    They are made once, and kept where git does not look, in `checkpoints/project.id`: a clone is another project, and
    a folder that is mounted elsewhere, or by a machine of another name, is the same.

    Raises:
        OutputError: the file cannot be written.
    """
    path = root / "checkpoints" / "project.id"
    with writing(path), exclusive_lock(path):  # of processes that start together, one makes it
        known = path.read_text(encoding="ascii", errors="replace").strip()
        if not re.fullmatch("[0-9a-f]{32}", known):
            known = uuid4().hex
            path.write_text(f"{known}\n", encoding="ascii")
    return known


def current_commit(root: Path) -> str:
    """Return the git commit of a project; `unknown` outside git.

    `+changes` is appended if tracked files differ from it, other than what the pipeline itself writes (dvc.lock,
    evaluation).
    """
    try:
        head = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!evaluation")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if changes else head


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@dataclass(frozen=True)
class Project:
    """A project's root folder (absolute) and its params; all paths below follow from them.

    Attributes:
        models: the folder in which its studies leave their models.
    """

    root: Path
    params: Params
    models: str = "models"

    @classmethod
    def find(cls, start: Path | None = None) -> Project:
        """The project that `start` (default: the working folder) lies in.

        Raises:
            ParamsError: there is none, or its params.yaml is wrong.
        """
        folder = (start or Path.cwd()).resolve()
        root = root_around(folder)
        if root is None:
            raise ParamsError(f"{folder}: no params.yaml here or above; change into a talud project")
        return cls(root, Params.read(root / "params.yaml"))

    def folder(self, area: Area) -> Path:
        """Where an area's sources lie."""
        return self.root / area.folder

    def stack(self, area: str) -> Path:
        """The stack of an area: float32 bands, NaN where invalid."""
        return self.root / "stacks" / f"{area}.tif"

    def mask(self, area: str) -> Path:
        """The inventory mask of an area: 1 landslide, 0 not, 255 unknown."""
        return self.root / "stacks" / f"{area}.mask.tif"

    def record(self, area: str) -> Path:
        """The record of an area's stack: what it was made from, and the MD5s of stack and mask.

        Records lie in a folder for each role, so that training depends on the training areas alone.
        """
        return self.root / "stacks" / self.params.area(area).role / f"{area}.json"

    def model(self, band_set: str) -> Path:
        """The best trial's ONNX file."""
        return self.root / self.models / f"{band_set}.onnx"

    def checkpoint(self, key: str) -> Path:
        """What a trial has come to so far; `key` is the trial's, or a study's whose lock it is."""
        return self.root / "checkpoints" / f"{key}.npz"

    def trials(self, band_set: str) -> Path:
        """The table of a study's trials."""
        return self.root / self.models / f"{band_set}.trials.json"

    def prediction(self, band_set: str, area: str) -> Path:
        """The folder of the maps of an area."""
        return self.root / "predictions" / band_set / area

    def metrics(self, band_set: str) -> Path:
        """Return the path of the scores that `dvc metrics show` lists."""
        return self.root / "evaluation" / f"{band_set}.json"

    def scores(self, band_set: str) -> Path:
        """Return the path of the score table of a band set's model.

        The table holds counts, scores and reliability of all areas.
        """
        return self.root / "evaluation" / f"{band_set}.scores.json"

    def outcome(self, band_set: str, area: str) -> Path:
        """The map of true and false positives and negatives of an area."""
        return self.root / "evaluation" / band_set / f"{area}.tif"

    def curve(self, band_set: str, part: str) -> Path:
        """Scores over the threshold as CSV; `part` is "test", for the test blocks, or an area's name."""
        return self.root / "evaluation" / f"{band_set}.curves" / f"{part}.csv"

    def recipes(self, band_set: str) -> Path:
        """What the recipe and the one that it is compared with come to."""
        return self.root / REFERENCES / f"{band_set}.json"

    def postprocessing(self, band_set: str) -> Path:
        """What ways of post-processing come to with a band set's model."""
        return self.root / "evaluation" / f"{band_set}.postprocessing.json"

    def registration(self, band_set: str) -> Path:
        """What registering a band set's model came to."""
        return self.root / "registered" / f"{band_set}.json"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.root / "reports" / "index.html"
