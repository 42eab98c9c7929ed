"""Tests of API keys and of the command `talud keys`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from talud.cli.main import app
from talud.errors import ParamsError
from talud.serving.database import Database
from talud.serving.keys import KeyStore
from talud.serving.tables import SCOPES, Key


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    with Database.open(f"sqlite:///{tmp_path}/service.db") as database:
        yield KeyStore(database)


def test_key_is_found_only_by_its_secret(store: KeyStore) -> None:
    secret = store.add("survey", "run")
    found = store.find(secret)
    assert found is not None
    assert (found.name, found.scope) == ("survey", "run")
    for other in ("", "survey", secret[:-1], f"{secret} ", secret.upper(), "talud-' OR 1=1 --", "\0"):
        assert store.find(other) is None


def test_database_files_contain_no_secret(store: KeyStore, tmp_path: Path) -> None:
    secret = store.add("survey", "run")
    files = list(tmp_path.iterdir())
    kept = b"".join(path.read_bytes() for path in files)
    assert b"survey" in kept  # the key was written to one of the files
    assert secret.encode() not in kept
    assert secret.removeprefix("talud-").encode() not in kept


def test_secrets_are_long_and_unique(store: KeyStore) -> None:
    secrets = {store.add(f"key {number}", "read") for number in range(20)}
    assert len(secrets) == 20
    assert min(map(len, secrets)) >= len("talud-") + 43  # 32 bytes


@pytest.mark.parametrize("scope", SCOPES)
def test_scope_includes_lower_scopes(scope, store: KeyStore) -> None:
    found = store.find(store.add("one", scope))
    assert found is not None
    assert [found.allows(each) for each in SCOPES] == [each in SCOPES[: SCOPES.index(scope) + 1] for each in SCOPES]


def test_revoked_key_is_not_found(store: KeyStore) -> None:
    gone, stays = store.add("gone", "admin"), store.add("stays", "read")
    store.revoke("gone")
    assert store.find(gone) is None
    assert store.find(stays) is not None
    again = store.add("gone", "read")
    assert again != gone
    assert store.find(gone) is None


def test_key_names_are_unique(store: KeyStore) -> None:
    store.add("survey", "run")
    for name in ("survey", "", "  ", "n" * 81):
        with pytest.raises(ParamsError):
            store.add(name, "run")
    with pytest.raises(ParamsError, match="the keys are: survey"):
        store.revoke("serveys")


def test_key_expires_after_given_days(store: KeyStore) -> None:
    year, spent = (store.find(store.add(name, "run", days)) for name, days in (("year", 365), ("spent", 0)))
    assert (year.expires - year.created, year.expired) == (timedelta(days=365), False)
    assert spent.expired
    default = store.find(store.add("default", "read"))
    assert default.expires - default.created == timedelta(days=365)


def test_new_key_with_revoked_name_has_another_id(store: KeyStore) -> None:
    first = store.find(store.add("survey", "run"))
    store.revoke("survey")
    assert store.find(store.add("survey", "run")).id != first.id


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def talud(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["keys", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_keys_command_shows_secret_once(project: Path) -> None:
    assert "no API key exists yet" in talud("list")
    secret = talud("add", "Geological Survey", "--scope", "run").strip()
    with Database.open(f"sqlite:///{project}/.talud/service/service.db") as database:
        found = KeyStore(database).find(secret)
    assert found is not None
    assert found.scope == "run"
    listed = talud("list")
    assert "Geological Survey" in listed
    assert secret not in listed
    talud("revoke", "Geological Survey")
    assert "Geological Survey" not in talud("list")


def test_keys_command_lists_expiry(project: Path) -> None:
    talud("add", "brief", "--expires-days", "7")
    assert f"{datetime.now(UTC) + timedelta(days=7):%Y-%m-%d}" in talud("list")
    with (
        Database.open(f"sqlite:///{project}/.talud/service/service.db") as database,
        database.engine.begin() as writer,
    ):
        writer.execute(update(Key).values(expires=datetime(2026, 1, 2, tzinfo=UTC)))
    assert "2026-01-02 (expired)" in talud("list")


def test_keys_command_creates_read_keys_by_default(project: Path) -> None:
    assert talud("add", "visitor")
    assert "read" in talud("list")
    with pytest.raises(ParamsError, match="there is already a key named visitor"):
        talud("add", "visitor", "--scope", "admin")
