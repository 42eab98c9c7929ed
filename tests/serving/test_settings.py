"""Tests of the service's settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service_process import free_port
from talud.errors import ParamsError
from talud.serving.settings import ENV_PREFIX, Settings


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rasters").mkdir()


def load_settings(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in {"data": "rasters", "results": "maps", **values}.items():
        monkeypatch.setenv(f"{ENV_PREFIX}{name.upper()}", value)
    return Settings.load()


@pytest.mark.parametrize(("message", "meant"), [("2", 2), ("tls://scheduler:8786", "tls://scheduler:8786")])
def test_workers_setting_is_number_or_address(message: str, meant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(monkeypatch, workers=message).workers == meant


def test_allowed_setting_is_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(monkeypatch, allowed='["data.example.org", "s3://bucket"]').allowed == (
        "data.example.org",
        "s3://bucket",
    )


def test_default_folders_are_those_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    (tmp_path / "stacks").mkdir()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    settings = Settings.load()
    assert (settings.data, settings.results) == (tmp_path / "stacks", tmp_path / ".talud/service")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data", "gone", "gone: no such folder; set TALUD_SERVICE_DATA to the folder of the rasters"),
        ("pixels", "0", "TALUD_SERVICE_PIXELS: Input should be greater than 0"),
        ("allowed", "example.org", "TALUD_SERVICE_ALLOWED"),
        ("alowed", "[]", "TALUD_SERVICE_ALOWED: unknown setting; the settings are TALUD_SERVICE_ALLOWED"),
        ("results_days", "soon", "TALUD_SERVICE_RESULTS_DAYS: Input should be a valid number"),
        ("results_days", "inf", "TALUD_SERVICE_RESULTS_DAYS: Input should be"),
        ("results_days", "nan", "TALUD_SERVICE_RESULTS_DAYS: Input should be"),
        ("keys_required", "perhaps", "TALUD_SERVICE_KEYS_REQUIRED: Input should be a valid boolean"),
        ("workers", "0", "TALUD_SERVICE_WORKERS: '0' is neither a number of processes, at least 1, nor the address"),
        ("workers", "-2", "TALUD_SERVICE_WORKERS: '-2' is neither"),
        ("workers", "2.5", "TALUD_SERVICE_WORKERS: '2.5' is neither"),
        ("workers", "two", "TALUD_SERVICE_WORKERS: 'two' is neither"),
        ("workers", "tcp//x", "TALUD_SERVICE_WORKERS: 'tcp//x' is neither"),
        ("workers", "tcp://scheduler", "TALUD_SERVICE_WORKERS: 'tcp://scheduler' is neither"),
        ("workers", "http://scheduler:8786", "TALUD_SERVICE_WORKERS: 'http://scheduler:8786' is neither"),
        ("workers", "scheduler:8786", "TALUD_SERVICE_WORKERS: 'scheduler:8786' is neither"),
        ("workers", "tcp://scheduler:99999", "TALUD_SERVICE_WORKERS: 'tcp://scheduler:99999' is neither"),
        ("results", "rasters", "rasters: is inside the folder of the rasters, rasters, so that maps would be"),
        ("results", "rasters/maps", "rasters/maps: is inside the folder of the rasters"),
        ("results", "maps/../rasters/maps", "maps/../rasters/maps: is inside the folder of the rasters"),
        ("results", "link/maps", "link/maps: is inside the folder of the rasters"),
        ("results", "..", None),
        ("results", "rasters/.maps", None),
        ("data", "kept/jobs", "kept/jobs: is inside .*/kept/jobs, where the service deletes files"),
        ("data", "kept/uploads/mine", "kept/uploads/mine: is inside .*/kept/uploads, where the service deletes files"),
        (
            "database",
            "mysql+pymysql://user:secret@host/name",
            "TALUD_SERVICE_DATABASE: mysql.pymysql is not a supported database",
        ),
        (
            "database",
            "postgres://user:secret@host/name",
            "TALUD_SERVICE_DATABASE: postgres is not a supported database",
        ),
        (
            "database",
            "postgresql://user:secret@host/name",
            "TALUD_SERVICE_DATABASE: postgresql is not a supported database",
        ),
        ("database", "nothing", "TALUD_SERVICE_DATABASE: is not a URL; expected sqlite:"),
        ("database", "postgresql+psycopg://user:secret@host:port/name", "TALUD_SERVICE_DATABASE: is not a URL"),
        ("database", "sqlite://", "TALUD_SERVICE_DATABASE: the database would be lost"),
        ("database", "sqlite:///:memory:", "TALUD_SERVICE_DATABASE: the database would be lost"),
        ("database", "", None),
        ("workers", "", None),
    ],
)
def test_invalid_setting_is_reported_in_one_line(
    name: str, value: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept/uploads/mine").mkdir(parents=True)
    (tmp_path / "kept/jobs").mkdir()
    (tmp_path / "link").symlink_to("rasters")
    values = {name: value, **({"results": "kept"} if name == "data" else {})}
    if message is None:
        load_settings(monkeypatch, **values)
        return
    with pytest.raises(ParamsError, match=f"^{message}") as caught:
        load_settings(monkeypatch, **values)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "instead"),
    [
        ("https://data.example.org", 'give only the host: "data.example.org"'),
        ("http://data.example.org:8080/", 'give only the host: "data.example.org:8080"'),
        ("data.example.org/", 'give only the host: "data.example.org"'),
        ("data.example.org/maps", 'give only the host: "data.example.org"'),
        ("data.example.org?x", 'give only the host: "data.example.org"'),
        (" data.example.org", 'give only the host: "data.example.org"'),
        ("user@data.example.org", "expected"),
        ("*.example.org", "expected"),
        ("./data.example.org", "expected"),
        ("..", "expected"),
        ("", "expected"),
        ("data", "expected"),
        ("localhost", 'by address and port, such as "10.1.2.3:8080"'),
        ("localhost:8080", 'by address and port, such as "10.1.2.3:8080"'),
        ("minio:9000", 'by address and port, such as "10.1.2.3:8080"'),
        ("data.example.org.", "expected"),
        (".example.org", "expected"),
        ("data..example.org", "expected"),
        ("data_example org", "expected"),
        ("data.example.org:0", "port from 1 to 65535"),
        ("data.example.org:65536", "port from 1 to 65535"),
        ("data.example.org:", "port from 1 to 65535"),
        ("data.example.org:https", "port from 1 to 65535"),
        ("10.1.2.3", "add its port: 10.1.2.3:8080"),
        ("127.0.0.1", "add its port: 127.0.0.1:8080"),
        ("[::1]", "add its port: [::1]:8080"),
        ("127.1:8080", "expected"),
        ("10.1.2.300:8080", "expected"),
        ("fd00::2", "port from 1 to 65535"),
        ("s3://bucket/maps", 'give only the bucket: "s3://bucket"'),
        ("s3://bucket/", 'give only the bucket: "s3://bucket"'),
        ("s3://Bucket", 'give only the bucket: "s3://bucket"'),
        ("S3://bucket", 'give only the bucket: "s3://bucket"'),
        ("s3://", "expected"),
        ("ftp://data.example.org", "expected"),
        ("file:///etc", "expected"),
    ],
)
def test_allow_list_entry_that_never_matches_is_refused(
    entry: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ParamsError, match=r"^TALUD_SERVICE_ALLOWED:") as caught:
        load_settings(monkeypatch, allowed=json.dumps(["good.example.org", entry]))
    assert instead in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("workers", "0", "TALUD_SERVICE_WORKERS: '0' is neither"),
        ("results", "file/maps", "file/maps: cannot be written"),
    ],
)
def test_serve_refuses_invalid_setting_in_one_line(name: str, value: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    command = [sys.executable, "-m", "talud.cli.main", "serve", "--port", str(free_port())]
    settings = {"data": "rasters", "results": "maps", name: value}
    environment = os.environ | {f"{ENV_PREFIX}{each.upper()}": given for each, given in settings.items()}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_keys_are_optional_only_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(monkeypatch).open_to_all("127.0.0.1")
    assert not load_settings(monkeypatch).open_to_all("0.0.0.0")
    assert not load_settings(monkeypatch, keys_required="true").open_to_all("127.0.0.1")
    with pytest.raises(ParamsError, match=r"KEYS_REQUIRED is false, but other machines can reach 0\.0\.0\.0"):
        load_settings(monkeypatch, keys_required="false").open_to_all("0.0.0.0")


@pytest.mark.slow
def test_serve_prints_url_and_advice_to_add_a_key(service_project: Path, tmp_path: Path) -> None:
    port = str(free_port())
    command = [sys.executable, "-m", "talud.cli.main", "serve", "--port", port]
    environment = os.environ | {
        f"{ENV_PREFIX}KEYS_REQUIRED": "true",
        f"{ENV_PREFIX}RESULTS": str(tmp_path),
    }
    with subprocess.Popen(command, cwd=service_project, env=environment, stdout=subprocess.PIPE, text=True) as running:
        try:
            message = [running.stdout.readline().strip() for _ in range(3)]
        finally:
            running.terminate()
    assert message[0] == f"review page: http://127.0.0.1:{port}/page/ (stop with Ctrl-C)"
    assert message[2] == "no API key exists yet; create one with: talud keys add NAME --scope run"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PROXIES", "10.0.0.5", "PROXIES: is not valid JSON"),
        ("PROXIES", '["proxy"]', "PROXIES: value is not a valid IPv4 or IPv6 network"),
        ("PUBLIC_URL", "maps.example.org", "PUBLIC_URL: String should match"),
        ("PUBLIC_URL", "https://user:secret@maps.example.org", "PUBLIC_URL: String should match"),
        ("PUBLIC_URL", "https://maps.example.org/?a=b", "PUBLIC_URL: String should match"),
    ],
)
def test_invalid_address_setting_is_refused(
    name: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{ENV_PREFIX}DATA", str(tmp_path / "rasters"))
    monkeypatch.setenv(f"{ENV_PREFIX}RESULTS", str(tmp_path / "maps"))
    monkeypatch.setenv(f"{ENV_PREFIX}{name}", value)
    with pytest.raises(ParamsError, match=message):
        Settings.load()


def test_obsolete_proxy_setting_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{ENV_PREFIX}DATA", str(tmp_path / "rasters"))
    monkeypatch.setenv(f"{ENV_PREFIX}RESULTS", str(tmp_path / "maps"))
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.5")
    with pytest.raises(ParamsError, match="FORWARDED_ALLOW_IPS: is no longer used"):
        Settings.load()
    monkeypatch.setenv(f"{ENV_PREFIX}PROXIES", '["10.0.0.5"]')
    assert [str(network) for network in Settings.load().proxies] == ["10.0.0.5/32"]
