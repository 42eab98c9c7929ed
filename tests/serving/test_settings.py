"""What an agency sets, by the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service_process import free_port
from talud.errors import ParamsError
from talud.serving.settings import PREFIX, Settings


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in {"data": ".", "results": "maps", **values}.items():
        monkeypatch.setenv(f"{PREFIX}{name.upper()}", value)
    return Settings.load()


@pytest.mark.parametrize(("said", "meant"), [("2", 2), ("tls://scheduler:8786", "tls://scheduler:8786")])
def test_workers_are_a_number_or_an_address(said: str, meant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, workers=said).workers == meant


def test_places_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, allowed='["data.example.org", "s3://bucket"]').allowed == (
        "data.example.org",
        "s3://bucket",
    )


def test_in_a_project_its_stacks_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    (tmp_path / "stacks").mkdir()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    settings = Settings.load()
    assert (settings.data, settings.results) == (tmp_path / "stacks", tmp_path / ".talud/service")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("data", "gone", "gone: no such folder; TALUD_SERVICE_DATA names the folder of the rasters"),
        ("pixels", "0", "TALUD_SERVICE_PIXELS: Input should be greater than 0"),
        ("allowed", "example.org", "TALUD_SERVICE_ALLOWED"),
        ("alowed", "[]", "TALUD_SERVICE_ALOWED: there is no such setting; there are TALUD_SERVICE_ALLOWED"),
        ("results_days", "soon", "TALUD_SERVICE_RESULTS_DAYS: Input should be a valid number"),
    ],
)
def test_what_makes_no_sense_is_one_line(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParamsError, match=f"^{said}") as caught:
        told(monkeypatch, **{name: value})
    assert "\n" not in str(caught.value)


def test_keys_are_off_on_loopback_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch).open_to_all("127.0.0.1")
    assert not told(monkeypatch).open_to_all("0.0.0.0")
    assert not told(monkeypatch, keys_required="true").open_to_all("127.0.0.1")
    with pytest.raises(ParamsError, match=r"KEYS_REQUIRED is false, but 0\.0\.0\.0 can be reached by others"):
        told(monkeypatch, keys_required="false").open_to_all("0.0.0.0")


def test_serve_says_where_it_is_and_that_nobody_has_a_key_yet(service_project: Path, tmp_path: Path) -> None:
    port = str(free_port())
    command = [sys.executable, "-m", "talud.cli.main", "serve", "--port", port]
    environment = os.environ | {f"{PREFIX}KEYS_REQUIRED": "true", f"{PREFIX}RESULTS": str(tmp_path)}
    with subprocess.Popen(command, cwd=service_project, env=environment, stdout=subprocess.PIPE, text=True) as running:
        try:
            said = [running.stdout.readline().strip() for _ in range(3)]
        finally:
            running.terminate()
    assert said[0] == f"talud serves, until Ctrl-C: http://127.0.0.1:{port}/page/"
    assert said[2] == "nobody can use it yet: talud keys add NAME --scope run makes a key"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PROXIES", "10.0.0.5", "PROXIES: is no JSON"),
        ("PROXIES", '["proxy"]', "PROXIES: value is not a valid IPv4 or IPv6 network"),
        ("PUBLIC_URL", "maps.example.org", "PUBLIC_URL: String should match"),
        ("PUBLIC_URL", "https://user:secret@maps.example.org", "PUBLIC_URL: String should match"),
        ("PUBLIC_URL", "https://maps.example.org/?a=b", "PUBLIC_URL: String should match"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused(
    name: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("DATA", "RESULTS"):
        monkeypatch.setenv(f"{PREFIX}{each}", str(tmp_path))
    monkeypatch.setenv(f"{PREFIX}{name}", value)
    with pytest.raises(ParamsError, match=said):
        Settings.load()


def test_the_earlier_setting_of_proxies_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("DATA", "RESULTS"):
        monkeypatch.setenv(f"{PREFIX}{each}", str(tmp_path))
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.5")
    with pytest.raises(ParamsError, match="FORWARDED_ALLOW_IPS: is not read any more"):
        Settings.load()
    monkeypatch.setenv(f"{PREFIX}PROXIES", '["10.0.0.5"]')
    assert [str(network) for network in Settings.load().proxies] == ["10.0.0.5/32"]
