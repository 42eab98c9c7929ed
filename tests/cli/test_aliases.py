"""Tests of aliases whose version was deleted through MLflow.

They cover what works without the version, and the command that repairs the alias.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from command_line import Run
from small_projects import HALF, SOMETHING, write_area, write_model, write_params
from talud.evaluation import promotion
from talud.project import Project
from talud.registry import Store

NAME = "landslide-unet-3band"


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project with two versions whose champion was deleted."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = write_params(tmp_path / "3band")
    write_area(found, "basin", np.indices((128, 128))[0] % 10 == 0)
    for threshold in (SOMETHING, HALF):
        write_model(found, tiny_model, threshold)
        promotion.register(found, "3band")
    client = Store.open(found.root).client
    client.set_registered_model_alias(NAME, "champion", "2")
    client.delete_model_version(NAME, "2")
    with closing(sqlite3.connect(found.root / "mlflow.db")) as store:  # as older MLflow servers leave it
        store.execute("DELETE FROM registered_model_aliases")
        store.execute("INSERT INTO registered_model_aliases (alias, version, name) VALUES ('champion', 2, ?)", (NAME,))
        store.commit()
    monkeypatch.chdir(found.root)
    return found


BROKEN = f"'{NAME}': its alias champion points to version 2, which was deleted; run talud models promote {NAME} VERSION"


@pytest.mark.slow
def test_commands_report_a_broken_alias_and_promote_repairs_it(talud: Run, project: Project) -> None:
    code, out, err = talud("models", "list")
    assert (code, NAME in out) == (0, True)
    assert err.startswith(f"talud: warning: {BROKEN}")
    for command in (
        ("predict", "auto", project.stack("basin"), "--out", "map"),
        ("models", "rollback", NAME),
        ("models", "show", NAME),
    ):
        code, _, err = talud(*command)
        assert code == 1, command
        assert err.count("\n") == 1
        assert BROKEN in err
    code, out, err = talud("models", "promote", NAME, 1)
    assert (code, err) == (0, "")
    assert "version 1 is champion: promoted by hand" in out
    assert talud("models", "list")[2] == ""
    code, out, _ = talud("predict", "auto", project.stack("basin"), "--out", "map")
    assert code == 0
    assert f"{NAME}, version 1" in out


def test_register_restores_a_deleted_champion(talud: Run, project: Project) -> None:
    code, out, err = talud("register", "3band")
    assert (code, err) == (0, "")
    assert "is champion" in out
    assert Store.open(project.root).client.get_registered_model(NAME).aliases.keys() == {"champion"}


def test_register_replaces_a_broken_challenger_alias(talud: Run, project: Project) -> None:
    client = Store.open(project.root).client
    client.set_registered_model_alias(NAME, "champion", "1")
    with closing(sqlite3.connect(project.root / "mlflow.db")) as store:
        store.execute(
            "INSERT INTO registered_model_aliases (alias, version, name) VALUES ('challenger', 9, ?)", (NAME,)
        )
        store.commit()
    assert "its alias challenger points to version 9, which was deleted" in talud("models", "list")[2]
    assert talud("register", "3band")[0] == 0
    assert talud("models", "list")[2] == ""
