"""Contract of a model: its input, origin, measurements and derivations.

The contract is stored in the ONNX file, as JSON under the metadata key `talud.contract`. A model's preprocessing,
threshold and origin are kept nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_core import from_json, to_json

from talud.contract.parts import (
    MAX_SUBSETS,
    Adaptation,
    AlignedPart,
    BandContract,
    Calibration,
    Derivations,
    Difference,
    FineTuning,
    FrozenModel,
    Measurements,
    ModelInput,
    ModelOrigin,
    NetworkArchitecture,
    ParentModel,
    PassMemory,
    Precision,
    ReducedPrecision,
    Subset,
    Validation,
    describe_alignment,
)
from talud.errors import ModelError

__all__ = [
    "MAX_SUBSETS",
    "METADATA_KEY",
    "SCHEMA_VERSION",
    "Adaptation",
    "AlignedPart",
    "BandContract",
    "Calibration",
    "Contract",
    "Derivations",
    "Difference",
    "FineTuning",
    "FlatContract",
    "Measurements",
    "ModelInput",
    "ModelOrigin",
    "NetworkArchitecture",
    "ParentModel",
    "PassMemory",
    "Precision",
    "ReducedPrecision",
    "Subset",
    "Validation",
    "describe_alignment",
    "migrate",
    "variant_path",
]

METADATA_KEY = "talud.contract"
SCHEMA_VERSION = 2

# Each field of version 1 in that version's order, and later ones, with the part of version 2 that holds it.
_PARTS: dict[str, Literal["input", "origin", "measured", "derived"]] = {
    "name": "origin",
    "bands": "input",
    "differences": "input",
    "required_groups": "input",
    "subsets": "input",
    "pixel_size": "input",
    "pixel_sizes": "input",
    "halo": "input",
    "halo_errors": "measured",
    "alignment": "input",
    "threshold": "measured",
    "stack": "input",
    "weights": "origin",
    "data_version": "origin",
    "areas": "origin",
    "area_pixel_sizes": "origin",
    "landslide_share": "origin",
    "commit": "origin",
    "run_id": "origin",
    "hyperparameters": "origin",
    "network": "origin",
    "scores": "measured",
    "parity": "measured",
    "calibration": "measured",
    "memory": "measured",
    "validation": "measured",
    "precision": "derived",
    "loss": "measured",
    "adapted": "derived",
    "finetuned": "derived",
}

# Fields that are left out where they are empty, as in files that were written before they existed.
_LATER_FIELDS = frozenset({"pixel_sizes", "area_pixel_sizes", "landslide_share", "network", "memory"})


class Contract(FrozenModel):
    """Statement of a model about its input and itself."""

    schema_version: Literal[2] = Field(2, description="schema version of the contract")
    input: ModelInput
    origin: ModelOrigin
    measured: Measurements
    derived: Derivations = Derivations()

    def replace(self, **fields: object) -> Contract:
        """Return a copy with other values of some fields.

        Args:
            fields: new values, by field name.

        Raises:
            ValidationError: A value is invalid, or no part has such a field.
        """
        return Contract.model_validate(migrate(self.flat() | fields))

    @property
    def areas_with_sizes(self) -> tuple[str, ...]:
        """Training areas, with their pixel sizes where these differ."""
        sizes = self.origin.area_pixel_sizes
        return tuple(f"{area} {sizes[area]:g} m" if area in sizes else area for area in self.origin.areas)

    @property
    def training_share(self) -> float | None:
        """Share of landslide in the training areas, 0 to 1.

        It is that of the validation blocks in older files, or None if these have no counts either. For a fine-tuned
        model it is that of its labelled patches, if that is higher.
        """
        share, known, tuned = self.origin.landslide_share, self.measured.validation, self.derived.finetuned
        if share is None and known is not None:
            pixels = known.tp + known.fp + known.fn + known.tn
            share = (known.tp + known.fn) / pixels if pixels else None
        if share is None or tuned is None:
            return share
        return max(share, min(tuned.landslide_pixels / (tuned.patches * tuned.side**2), 1.0))

    def without_optional_groups(self) -> Contract:
        """Return the contract with all band groups required."""
        return self.replace(subsets=(), required_groups=self.input.groups)

    def is_variant_of(self, other: Contract) -> bool:
        """Return whether both are one model in two precisions."""
        mine, its = ((each.origin.weights, each.measured.threshold, each.origin.data_version) for each in (self, other))
        return mine == its and self.derived.precision != other.derived.precision

    def flat(self) -> dict[str, object]:
        """Return all fields in the flat form of version 1.

        Fingerprints of registered versions, the service and `talud models show` use this form. Later fields are left
        out if they are empty, so that fingerprints of older files do not change.
        """
        stated = {name: getattr(getattr(self, part), name) for name, part in _PARTS.items()}
        return {"version": 1} | {name: value for name, value in stated.items() if value or name not in _LATER_FIELDS}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], origin: str) -> Contract:
        """Read the contract from an ONNX file's metadata.

        Args:
            metadata: metadata entries of the file.
            origin: name of the file, for messages.

        Raises:
            ModelError: The contract is missing or damaged, or was written by a newer talud.
        """
        text = metadata.get(METADATA_KEY)
        if text is None:
            raise ModelError(f"{origin}: contains no talud contract; choose a model made by talud train")
        try:
            return cls.model_validate(migrate(from_json(text)))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            at = f" at '{where}'" if where else ""
            reason = first["msg"].removeprefix("Value error, ")
            raise ModelError(f"{origin}: its contract is damaged{at}: {reason}; export it again") from error
        except _NewerError as error:
            raise ModelError(
                f"{origin}: its contract has schema version {error}, and this talud supports versions up to "
                f"{SCHEMA_VERSION}; install a newer talud, or export the model with this one"
            ) from error
        except ValueError as error:
            raise ModelError(f"{origin}: its contract is damaged: {error}; export it again") from error

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata entry that holds the contract.

        Later fields are left out if they are empty, so that older versions of talud can read the file.
        """
        content = self.model_dump(mode="json")
        for name in _LATER_FIELDS:
            if not content[_PARTS[name]][name]:
                del content[_PARTS[name]][name]
        return {METADATA_KEY: to_json(content).decode()}


class FlatContract(ModelInput, ModelOrigin, Measurements, Derivations):
    """Statement of a model about its input and itself."""

    version: Literal[1] = Field(1, description="schema version of the contract")

    @classmethod
    def of(cls, contract: Contract) -> FlatContract:
        """Convert a contract to its published flat form."""
        return cls.model_validate(contract.flat())


class _NewerError(Exception):
    """Contract of a newer schema version, which is the message."""


def migrate(content: Any) -> Any:
    """Convert a contract's JSON content to the current schema version.

    Version 1 had all fields at the top level. Unknown fields stay there, and fail validation.
    """
    if not isinstance(content, Mapping):
        return content
    if "schema_version" in content:
        version = content["schema_version"]
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise _NewerError(version)
        return content
    nested: dict[str, dict[str, object]] = {part: {} for part in ("input", "origin", "measured", "derived")}
    unknown = {name: value for name, value in content.items() if name not in _PARTS}
    if unknown.get("version") == 1:
        del unknown["version"]
    for name, part in _PARTS.items():
        if name in content:
            nested[part][name] = content[name]
    return {"schema_version": SCHEMA_VERSION} | nested | unknown


def variant_path(path: Path, precision: Precision) -> Path:
    """Return the path of a model's variant, such as `7band.int8.onnx`.

    The float32 variant is the file itself.
    """
    return path if precision == "float32" else path.with_suffix(f".{precision}.onnx")
