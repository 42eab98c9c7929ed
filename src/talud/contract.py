"""The contract of a model: what it expects of a raster and states about itself.

It travels inside the ONNX file, as JSON under the metadata key `talud.contract`. There is no other place where a
model's preprocessing, threshold or origin is kept.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from talud.bands import Group
from talud.errors import ModelError

METADATA_KEY = "talud.contract"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BandContract(_Frozen):
    """One input band, in the order in which the network reads it."""

    name: str
    group: Group
    unit: str = Field(description="as the stack states it: degree, 1/100m, dB, reflectance, DN …")
    lowest: float = Field(description="plausible range: values below mean another unit, or a fault")
    highest: float
    mean: float = Field(description="of the valid training pixels, like the three that follow")
    deviation: float
    minimum: float
    maximum: float


class Contract(_Frozen):
    """What a model states about its input and itself."""

    version: int = Field(1, description="of this form of contract")
    name: str = Field(description="the band set")
    bands: tuple[BandContract, ...]
    required_groups: tuple[Group, ...] = Field(description="where one of these is invalid, nothing is mapped")
    pixel_size: float = Field(gt=0, description="metres")
    halo: int = Field(ge=0, description="pixels of context that a tile on the lattice can depend on, each side")
    halo_errors: dict[NonNegativeInt, Annotated[float, Field(ge=0, le=1)]] = Field(
        default={},
        description="a smaller halo in pixels, and how far probabilities differ with it, at most, on windows of the "
        "training areas; empty where that was not measured",
    )
    alignment: int = Field(ge=1, description="tile origins lie on multiples of this: 2^depth")
    threshold: float = Field(gt=0, lt=1, description="landslide where the probability is at least this")
    stack: dict[str, str] = Field(description="how the stack was made: slope, curvature, SAR unit, speckle filter")
    weights: str = Field(description="SHA-256 over the graph's constants: the same for two exports of one model")
    data_version: str = Field(description="MD5 over the MD5s of the stacks and masks trained on")
    areas: tuple[str, ...] = Field(description="the areas trained on")
    commit: str = Field(description="of the project's repository, with +changes where it was not clean")
    run_id: str = Field(description="the MLflow run of the trial")
    hyperparameters: dict[str, float | int | str]
    scores: dict[str, float] = Field(description="precision, recall, f1 and iou on the validation blocks")

    @property
    def band_names(self) -> tuple[str, ...]:
        """The names of the bands, in the order in which the network reads them."""
        return tuple(band.name for band in self.bands)

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], origin: str) -> Contract:
        """Read the contract from an ONNX file's metadata.

        Raises:
            ModelError: there is none, or it is damaged.
        """
        text = metadata.get(METADATA_KEY)
        if text is None:
            raise ModelError(f"{origin}: carries no talud contract; export it with talud train, or name another model")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ModelError(
                f"{origin}: its contract is damaged at '{where}': {first['msg']}; export it again"
            ) from error

    def to_metadata(self) -> dict[str, str]:
        """The metadata entry that holds the contract."""
        return {METADATA_KEY: self.model_dump_json()}
