"""Project folder: parameters, identifier, git commit and paths of results."""

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
    """Return the project root around an absolute folder."""
    return next((root for root in (folder, *folder.parents) if (root / "params.yaml").is_file()), None)


def project_id(root: Path) -> str:
    """Return the id of a checkout: 32 hex digits.

    The id is created once and kept in `checkpoints/project.id`, which git ignores. A clone is therefore another
    project, but a folder that is mounted elsewhere or on another machine is the same one.

    Raises:
        OutputError: The file cannot be written.
    """
    path = root / "checkpoints" / "project.id"
    # The lock lets only one of several processes that start together create the id.
    with translate_write_errors(path), exclusive_lock(path):
        known = path.read_text(encoding="ascii", errors="replace").strip()
        if not re.fullmatch("[0-9a-f]{32}", known):
            known = uuid4().hex
            path.write_text(f"{known}\n", encoding="ascii")
    return known


def current_commit(root: Path) -> str:
    """Return the git commit of a project; `unknown` outside git.

    `+changes` is appended if tracked files have uncommitted changes, except files that the pipeline writes (dvc.lock,
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


def adapted_name(area: str) -> str:
    """Return the name of an area's results with adapted models."""
    return f"{area}.adapted"


@dataclass(frozen=True)
class Project:
    """Project with its root folder and parameters.

    Attributes:
        root: absolute path of the root folder.
        params: content of params.yaml.
        models: folder, relative to the root, in which studies write their models.
    """

    root: Path
    params: Params
    models: str = "models"

    @classmethod
    def find(cls, start: Path | None = None) -> Project:
        """Return the project around a folder.

        Args:
            start: the folder. Default: the working folder.

        Raises:
            ParamsError: There is no project, or its params.yaml is invalid.
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
        """Return the path of an area's stack.

        Bands are float32, NaN where invalid.
        """
        return self.root / "stacks" / f"{area}.tif"

    def mask(self, area: str) -> Path:
        """Return the path of an area's mask.

        The mask is 1 for landslide, 0 for background and 255 where unknown.
        """
        return self.root / "stacks" / f"{area}.mask.tif"

    def stack_record(self, area: str) -> Path:
        """Return the path of an area's stack record.

        The record holds the sources of the stack, and the MD5s of stack and mask. Each role has a folder of its own, so
        that training depends only on the training areas.
        """
        return self.root / "stacks" / self.params.area(area).role / f"{area}.json"

    def model(self, band_set: str) -> Path:
        """Return the path of a band set's ONNX file."""
        return self.root / self.models / f"{band_set}.onnx"

    def checkpoint(self, key: str) -> Path:
        """Return the checkpoint path of a trial or study."""
        return self.root / "checkpoints" / f"{key}.npz"

    def trials(self, band_set: str) -> Path:
        """Return the path of the table of a study's trials."""
        return self.root / self.models / f"{band_set}.trials.json"

    def prediction(self, band_set: str, area: str) -> Path:
        """Return the folder of a band set's map."""
        return self.root / "predictions" / band_set / area

    def adapted_prediction(self, band_set: str, area: str) -> Path:
        """Return the folder of the map of a band set's adapted model."""
        return self.prediction(band_set, adapted_name(area))

    def metrics(self, band_set: str) -> Path:
        """Return the path of the scores for `dvc metrics show`."""
        return self.root / "evaluation" / f"{band_set}.json"

    def scores(self, band_set: str) -> Path:
        """Return the path of a band set's score table.

        The table holds the counts, scores and reliability of all areas.
        """
        return self.root / "evaluation" / f"{band_set}.scores.json"

    def confusion_map(self, band_set: str, area: str) -> Path:
        """Return the path of an area's confusion map."""
        return self.root / "evaluation" / band_set / f"{area}.tif"

    def curve(self, band_set: str, part: str) -> Path:
        """Return the path of the threshold curve, as CSV.

        Args:
            band_set: name of the band set.
            part: "test" for the test blocks, or the name of an area.
        """
        return self.root / "evaluation" / f"{band_set}.curves" / f"{part}.csv"

    def recipe_comparison(self, band_set: str) -> Path:
        """Return the path of the scores of the recipe and its baseline."""
        return self.root / BASELINES / f"{band_set}.json"

    def postprocessing(self, band_set: str) -> Path:
        """Return the path of a band set's scores with post-processing."""
        return self.root / "evaluation" / f"{band_set}.postprocessing.json"

    def registration(self, band_set: str) -> Path:
        """Return the path of a band set's registration."""
        return self.root / "registered" / f"{band_set}.json"

    @property
    def report(self) -> Path:
        """Path of the report page."""
        return self.root / "reports" / "index.html"
