"""Records of stacks, and checks against params.yaml."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talud.contract import Contract
from talud.errors import StudyError
from talud.params import Area, PatchData, Source, StackOptions
from talud.project import Project, find_root
from talud.raster import PATCH_TAG, SOURCE_RESOLUTION_TAG, open_raster

BANDS_TAG_PREFIX = "TALUD_BANDS_OF_"  # followed by a source: tag of the bands that were taken from it
_SOURCES_TAG = "TALUD_SOURCES"
# Options of older stacks, whose records have no settings, by their tags.
_OPTION_TAGS = {
    "TALUD_RESOLUTION": "resolution",
    "TALUD_SLOPE": "slope",
    "TALUD_CURVATURE": "curvature",
    "TALUD_SAR_UNIT": "sar_unit",
    "TALUD_LEE_WINDOW": "lee_window",
}
# Key of the settings of resampled patches: pixel size in metres and rule of the mask.
_RESAMPLED = "patches resampled to"
_PATCH_OPTIONS = {"slope", "curvature", "lee_window"}
_PATCH_SAR_UNIT = "stack.sar_unit"
_LABEL_SOURCES = ("inventory", "boundary", "masks")


@dataclass(frozen=True)
class StackRecord:
    """Record of a stack and its mask.

    Counts of polygons and landslide pixels are None if an area has no inventory or masks; `patches` is None if it has
    no patches; `settings` is None in records of older versions.
    """

    area: str
    role: str
    stack_md5: str
    mask_md5: str
    sources: dict[str, str]
    dates: dict[str, str | None]
    bands: tuple[str, ...]
    height: int
    width: int
    landslide_pixels: int | None
    polygons: int | None
    repaired_polygons: int | None
    skipped_polygons: int | None
    patches: tuple[str, ...] | None = None
    unlabelled_patches: int | None = None
    settings: dict[str, Any] | None = None

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")


def sources_tag(fingerprints: Mapping[Source, str] | Mapping[str, str]) -> dict[str, str]:
    """Return the tag with the sources' fingerprints.

    Labels are left out, since a stack does not contain them.
    """
    shown = {name: digest for name, digest in sorted(fingerprints.items()) if name not in _LABEL_SOURCES}
    return {_SOURCES_TAG: ", ".join(f"{name} {digest}" for name, digest in shown.items())}


def describe_resampling(stack: Path) -> str:
    """Describe the resampling of a patch stack; empty if none.

    Raises:
        SourceError: The stack cannot be read.
    """
    with open_raster(stack) as dataset:
        tags = dataset.tags()
    own, size = tags.get(SOURCE_RESOLUTION_TAG), tags.get("TALUD_RESOLUTION")
    return f"patches resampled from {own} m to {size} m, in cells of {tags.get(PATCH_TAG)} pixels" if own else ""


def remove_stale_records(project: Project, area: str) -> None:
    """Remove an area's records of other roles.

    Otherwise training would still depend on them.
    """
    current = project.stack_record(area)
    for stale in current.parent.parent.glob(f"*/{area}.json"):
        if stale != current:
            stale.unlink()


def data_version(project: Project, areas: Sequence[str]) -> str:
    """Return the data version of areas.

    The version is an MD5 over the checksums of their stacks and masks.

    Raises:
        ParamsError: An area is unknown.
        StudyError: A record is missing or damaged.
    """
    digests = []
    for area in areas:
        path = project.stack_record(area)
        try:
            record = json.loads(path.read_bytes())
            digests += [str(record["stack_md5"]), str(record["mask_md5"])]
        except FileNotFoundError as error:
            raise StudyError(
                f"{path}: not found, so '{area}' has no stack; run talud stack {area} (or dvc repro)"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise StudyError(f"{path}: is damaged; run talud stack {area} (or dvc repro) again") from error
    return hash_data_version(digests)


def hash_data_version(digests: Sequence[str]) -> str:
    """Hash the MD5s of stacks and masks."""
    return hashlib.md5("\n".join(sorted(digests)).encode(), usedforsecurity=False).hexdigest()


def stack_settings(area: Area, options: StackOptions, *, processed: bool = True) -> dict[str, Any]:
    """Return the settings that determine a stack.

    The settings come from params.yaml and are returned as JSON values.

    They are those of the area and, for a stack of rasters, the stack options. For patches that are resampled, they
    include the pixel size of the stack.

    Args:
        area: the area.
        options: the stack options.
        processed: false for patches without terrain and SAR, which do not depend on the options of these bands.
    """
    stated = area.model_dump(mode="json", exclude={"resolution", "adapt"})
    if area.patches:
        if options.resamples(area.patches.pixel_size) or _has_unknown_size(area.patches, options):
            stated |= {_RESAMPLED: [options.resolution, options.inventory_rule]}
        if processed:  # sar_unit of the area is that of its files
            stated |= options.model_dump(mode="json", include=_PATCH_OPTIONS) | {_PATCH_SAR_UNIT: options.sar_unit}
        return stated
    return stated | options.for_area(area).model_dump(mode="json", exclude={"overlap", "pixel_sizes"})


def _has_unknown_size(patches: PatchData, options: StackOptions) -> bool:
    """Return true if the files decide whether patches are resampled."""
    return options.pixel_sizes == "resample" and "pixel_size" not in patches.model_fields_set


def check_current_stack(project: Project, area: str) -> Path:
    """Check an area's stack against params.yaml.

    Returns its path.

    A stack without a record, which another program may have made, is accepted. So is a missing one: opening it raises
    an error.

    Raises:
        ParamsError: The area is unknown.
        StudyError: params.yaml has changed since the stack was made, or the record is damaged.
    """
    path, record = project.stack(area), project.stack_record(area)
    shown = path.relative_to(project.root)
    again = f"run talud stack {area} (or dvc repro)"
    if not record.is_file():
        other = next(iter(record.parent.parent.glob(f"*/{area}.json")), None)
        if other is not None:
            raise StudyError(
                f"{shown}: was made for the role {other.parent.name}, but params.yaml states {record.parent.name}; "
                f"{again}"
            )
        return path
    try:
        made_with = json.loads(record.read_bytes()).get("settings")
    except (ValueError, AttributeError) as error:
        raise StudyError(f"{record}: is damaged; {again} again") from error
    now = stack_settings(project.params.area(area), project.params.stack)
    if made_with is None:
        made_with = _settings_from_tags(path, now)
    if _RESAMPLED in {*now, *made_with}:
        now, made_with = ({_RESAMPLED: None} | each for each in (now, made_with))
    changes = [
        f"{key} {_format_setting(made_with[key])}, but params.yaml states {_format_setting(now[key])}"
        for key in now
        if key in made_with and made_with[key] != now[key]
    ]
    if changes:
        raise StudyError(f"{shown}: was made with {'; '.join(changes)}; {again}")
    return path


def check_raster_current(raster: str | Path) -> None:
    """Check a raster if it is a project's stack.

    The record of the stack is compared with params.yaml.

    Raises:
        ParamsError: The project's params.yaml is not valid.
        StudyError: params.yaml has changed since the stack was made.
    """
    path = Path(raster).resolve()
    root = find_root(path.parent)
    if path.suffix != ".tif" or root is None or path.parent != root / "stacks":
        return
    project = Project.find(root)
    if path.stem in project.params.areas:
        check_current_stack(project, path.stem)


def _settings_from_tags(stack: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in the tags of older stacks.

    Options that are equal to those in `now` are returned in the same form.
    """
    if not stack.is_file():
        return {}
    with open_raster(stack) as dataset:
        tags = dataset.tags()
    found = {option: tags[tag] for tag, option in _OPTION_TAGS.items() if tag in tags and option in now}
    return {option: now[option] if text == _tag(now[option]) else text for option, text in found.items()}


def _tag(value: object) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _format_setting(value: object) -> str:
    """Return a setting as text or JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def check_held_out(contract: Contract, path: Path, project: Project) -> None:
    """Check a model against the present data and split.

    Otherwise other blocks may contain its training data.

    Args:
        contract: contract of the model.
        path: path of its file, for the message.
        project: project with the present stacks and params.

    Raises:
        StudyError: Areas, data or split options differ.
    """
    gone = [area for area in contract.origin.areas if area not in project.params.areas_with_role("training")]
    if gone:  # DVC does not notice this, since it keeps the record of a removed area
        records = " ".join(f"stacks/training/{area}.json" for area in gone)
        raise StudyError(
            f"{path}: was trained on {', '.join(gone)}, not a training area of params.yaml any more; remove "
            f"{records} and run dvc repro"
        )
    for area in contract.origin.areas:
        check_current_stack(project, area)
    if data_version(project, contract.origin.areas) != contract.origin.data_version:
        raise StudyError(
            f"{path}: was trained on other stacks or inventories than the present ones of "
            f"{', '.join(contract.origin.areas)}, so the blocks may be split differently; run talud train "
            f"{contract.origin.name} (or dvc repro) again"
        )
    stated, present = contract.origin.hyperparameters, project.params.split_hyperparameters
    for name in (name for name in present if name in stated and stated[name] != present[name]):
        raise StudyError(
            f"{path}: was trained with {name.replace('_', '.', 1)} {stated[name]}, but params.yaml states "
            f"{present[name]}, so its training may have seen the test blocks; run talud train {contract.origin.name} "
            "(or dvc repro) again"
        )
