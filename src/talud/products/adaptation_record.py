"""Record of the adaptation of a model to an area of a project."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from talud.errors import StudyError
from talud.files import atomic_replace
from talud.project import Project

RECORD_NAME, MODEL_NAME = "adaptation.json", "model.onnx"


class TriedModel(BaseModel):
    """Model as it is, or aligned to the area, with the signs of its map."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = Field(description="as it is, bands aligned, or bands and layers aligned")
    landslide_share: float = Field(description="share of landslide in its maps of windows of the area")
    agreement: float = Field(description="correlation of its maps of rotated and mirrored windows with its map")
    plausible: bool = Field(description="false if the share is far above that of the training areas")


class AdaptationRecord(BaseModel):
    """Content of adaptation.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    band_set: str
    area: str
    weights: str = Field("", description="checksum of the weights of the original model")
    adapted: bool = Field(description="true if the folder has a map of an adapted model")
    reason: str = Field("", description="reason why the model was not adapted; empty if it was")
    requested: bool = Field(True, description="false if `adapt` of the area is not set in params.yaml")
    chosen: str = Field("", description="description of the adapted model; empty if there is none")
    training_share: float | None = Field(None, description="share of landslide in the training areas")
    tried: tuple[TriedModel, ...] = ()

    def write(self, folder: Path) -> None:
        """Write the record into a folder, which is created."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_replace(folder / RECORD_NAME) as scratch:
            scratch.write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the record of a folder; None if there is none.

        Raises:
            StudyError: the record is damaged.
        """
        path = folder / RECORD_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValidationError as error:
            raise StudyError(f"{path}: is damaged; run dvc repro, or talud adapt BAND_SET AREA, again") from error

    @classmethod
    def read_all(cls, project: Project, band_set: str) -> dict[str, Self]:
        """Read a band set's records for the areas with `adapt: true`.

        Raises:
            StudyError: a record is damaged.
        """
        wanted = [name for name, area in project.params.areas.items() if area.adapt]
        found = {area: cls.read(project.adapted_prediction(band_set, area)) for area in wanted}
        return {area: record for area, record in found.items() if record}
