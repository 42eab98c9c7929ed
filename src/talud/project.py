"""A project folder: params.yaml, and where each result lies."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from talud.errors import ParamsError
from talud.files import exclusive_lock, translate_write_errors
from talud.params import Area, Params

BASELINES = "baselines"  # folder of the models and scores of the baseline recipe


def find_root(folder: Path) -> Path | None:
    """Return the root of the project around an absolute folder, if there is one."""
    return next((root for root in (folder, *folder.parents) if (root / "params.yaml").is_file()), None)


def project_id(root: Path) -> str:
    """Return the id of a checkout in a store that projects share: 32 hex digits.

    They are made once, and kept where git does not look, in `checkpoints/project.id`: a clone is another project, and
    a folder that is mounted elsewhere, or by a machine of another name, is the same.

    Raises:
        OutputError: the file cannot be written.
    """
    path = root / "checkpoints" / "project.id"
    with translate_write_errors(path), exclusive_lock(path):  # of processes that start together, one makes it
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
    """The absolute root folder of a project and its parameters.

    All paths follow from them.

    Attributes:
        models: the folder in which its studies leave their models.
    """

    root: Path
    params: Params
    models: str = "models"

    @classmethod
    def find(cls, start: Path | None = None) -> Project:
        """Return the project around a folder; default: the working folder.

        Raises:
            ParamsError: there is none, or its params.yaml is wrong.
        """
        folder = (start or Path.cwd()).resolve()
        root = find_root(folder)
        if root is None:
            raise ParamsError(f"{folder}: no params.yaml here or above; change into a talud project")
        return cls(root, Params.read(root / "params.yaml"))

    def folder(self, area: Area) -> Path:
        """Return the folder of an area's sources."""
        return self.root / area.folder

    def stack(self, area: str) -> Path:
        """Return the path of the stack of an area: float32 bands, NaN where invalid."""
        return self.root / "stacks" / f"{area}.tif"

    def mask(self, area: str) -> Path:
        """Return the path of the mask of an area: 1 landslide, 0 not, 255 unknown."""
        return self.root / "stacks" / f"{area}.mask.tif"

    def stack_record(self, area: str) -> Path:
        """Return the path of the record of an area's stack.

        It holds the sources of the stack, and the MD5s of stack and mask.

        Records lie in a folder for each role, so that training depends on the training areas alone.
        """
        return self.root / "stacks" / self.params.area(area).role / f"{area}.json"

    def model(self, band_set: str) -> Path:
        """Return the path of the best trial's ONNX file."""
        return self.root / self.models / f"{band_set}.onnx"

    def checkpoint(self, key: str) -> Path:
        """Return the path of a trial's checkpoint, or of a study's, by its key."""
        return self.root / "checkpoints" / f"{key}.npz"

    def trials(self, band_set: str) -> Path:
        """Return the path of the table of a study's trials."""
        return self.root / self.models / f"{band_set}.trials.json"

    def prediction(self, band_set: str, area: str) -> Path:
        """Return the folder of the maps of an area."""
        return self.root / "predictions" / band_set / area

    def metrics(self, band_set: str) -> Path:
        """Return the path of the scores that `dvc metrics show` lists."""
        return self.root / "evaluation" / f"{band_set}.json"

    def scores(self, band_set: str) -> Path:
        """Return the path of the score table of a band set's model.

        The table holds counts, scores and reliability of all areas.
        """
        return self.root / "evaluation" / f"{band_set}.scores.json"

    def confusion_map(self, band_set: str, area: str) -> Path:
        """Return the path of an area's map of true and false positives and negatives."""
        return self.root / "evaluation" / band_set / f"{area}.tif"

    def curve(self, band_set: str, part: str) -> Path:
        """Return the path of the scores over the threshold, as CSV.

        `part` is "test", for the test blocks, or the name of an area.
        """
        return self.root / "evaluation" / f"{band_set}.curves" / f"{part}.csv"

    def recipe_comparison(self, band_set: str) -> Path:
        """Return the path of the scores of the recipe and its baseline."""
        return self.root / BASELINES / f"{band_set}.json"

    def postprocessing(self, band_set: str) -> Path:
        """Return the path of the scores of post-processing for a band set's model."""
        return self.root / "evaluation" / f"{band_set}.postprocessing.json"

    def registration(self, band_set: str) -> Path:
        """Return the path of the result of registering a band set's model."""
        return self.root / "registered" / f"{band_set}.json"

    @property
    def report(self) -> Path:
        """The path of the report page."""
        return self.root / "reports" / "index.html"
