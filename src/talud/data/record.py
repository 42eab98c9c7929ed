"""The record of a stack: what it was made from, and the version of the data that follows from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from talud.errors import StudyError
from talud.params import Source
from talud.project import Project

BANDS_OF = "TALUD_BANDS_OF_"  # and the name of a source: the tag of the bands that were taken from it
_SOURCES = "TALUD_SOURCES"
_LABELS = ("inventory", "boundary", "masks")


@dataclass(frozen=True)
class Record:
    """What a stack and its mask were made from, and what they hold.

    Of polygons and landslide pixels None where an area has no inventory, or no masks; of patches where it has none.
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

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")


def sources_tag(fingerprints: Mapping[Source, str] | Mapping[str, str]) -> dict[str, str]:
    """The tag that says of which contents a stack was made; labels are none, for a stack does not show them."""
    shown = {name: digest for name, digest in sorted(fingerprints.items()) if name not in _LABELS}
    return {_SOURCES: ", ".join(f"{name} {digest}" for name, digest in shown.items())}


def forget_other_roles(project: Project, area: str) -> None:
    """Remove the record that an area had in another role: training must not go on depending on it."""
    current = project.record(area)
    for stale in current.parent.parent.glob(f"*/{area}.json"):
        if stale != current:
            stale.unlink()


def data_version(project: Project, areas: Sequence[str]) -> str:
    """MD5 over the sorted MD5s of the stacks and masks of areas, as their records state them.

    Raises:
        ParamsError: there is no such area.
        StudyError: a record is missing or damaged.
    """
    digests = []
    for area in areas:
        path = project.record(area)
        try:
            record = json.loads(path.read_bytes())
            digests += [str(record["stack_md5"]), str(record["mask_md5"])]
        except FileNotFoundError as error:
            raise StudyError(
                f"{path}: not found, so '{area}' has no stack; run talud stack {area} (or dvc repro)"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise StudyError(f"{path}: is damaged; run talud stack {area} (or dvc repro) again") from error
    return version_of(digests)


def version_of(digests: Sequence[str]) -> str:
    """The data version that the MD5s of stacks and masks come to."""
    return hashlib.md5("\n".join(sorted(digests)).encode(), usedforsecurity=False).hexdigest()
