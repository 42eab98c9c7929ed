"""Whether the present blocks are those that a model's training left out."""

from __future__ import annotations

from pathlib import Path

from talud.contract import Contract
from talud.data.record import current_stack, data_version
from talud.errors import StudyError
from talud.project import Project


def check_held_out(contract: Contract, path: Path, project: Project) -> None:
    """That a model was trained on the present data and split: else other blocks may hold what it learned from.

    Args:
        contract: the model's.
        path: of its file, for the message.
        project: whose stacks and params are the present ones.

    Raises:
        StudyError: it was not.
    """
    gone = [area for area in contract.origin.areas if area not in project.params.areas_of("training")]
    if gone:  # DVC cannot see this: a record that nothing makes any more stays where it was
        records = " ".join(f"stacks/training/{area}.json" for area in gone)
        raise StudyError(
            f"{path}: was trained on {', '.join(gone)}, no training area of params.yaml any more; remove "
            f"{records} and run dvc repro"
        )
    for area in contract.origin.areas:
        current_stack(project, area)
    if data_version(project, contract.origin.areas) != contract.origin.data_version:
        raise StudyError(
            f"{path}: was trained on other stacks or inventories than the present ones of "
            f"{', '.join(contract.origin.areas)}, so the blocks may be dealt otherwise; run talud train "
            f"{contract.origin.name} (or dvc repro) again"
        )
    stated, present = contract.origin.hyperparameters, project.params.split_choices
    for name in (name for name in present if name in stated and stated[name] != present[name]):
        raise StudyError(
            f"{path}: was trained with {name.replace('_', '.', 1)} {stated[name]}, params.yaml says "
            f"{present[name]}, so its training may have seen the test blocks; run talud train {contract.origin.name} "
            "(or dvc repro) again"
        )
