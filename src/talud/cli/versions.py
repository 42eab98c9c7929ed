"""`talud versions`: tell the project which versions of talud's parts are installed."""

from __future__ import annotations

from pathlib import Path

from talud.cli.app import app


@app.command("versions")
def versions() -> None:
    """Write versions.yaml, by which DVC sees what an upgrade of talud changes.

    Each part of talud (data, training, inference, evaluation) has a version, which is raised when the same input gives
    another result. dvc.yaml reads the file: after this command `dvc status` lists the stages that are stale, and `dvc
    repro` repeats them. Commit the file with dvc.lock.

    **Examples**

        pip install --upgrade talud && talud versions && dvc status
    """
    from talud import versions
    from talud.errors import ParamsError
    from talud.project import root_around

    folder = Path.cwd()
    root = root_around(folder)
    if root is None:
        raise ParamsError(f"{folder}: no params.yaml here or above; change into a talud project")
    versions.write(root)
    print(f"{versions.FILE}: {', '.join(f'{part} {number}' for part, number in versions.VERSIONS.items())}")
