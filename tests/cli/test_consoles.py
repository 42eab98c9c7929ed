"""Tests of consoles whose encoding is not UTF-8.

Everything is printed, with `?` for characters that they lack.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from click import Command

from source_files import write_raster
from talud.cli.app import app
from talud.cli.main import main

RUN = "from talud.cli.main import main; main()"


def commands(command: Command, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield names
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, (*names, name))


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "cp437"])
def test_help_prints_on_consoles_that_are_not_utf_8(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = list(commands(typer.main.get_command(app)))
    assert len(known) > 20
    for names in known:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["talud", *names, "--help"])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as ended:
                main()
        for stream in (out, err):
            stream.flush()
        assert (ended.value.code, err.buffer.getvalue()) == (0, b""), names
        output = out.buffer.getvalue().decode(encoding)
        assert " ".join(("Usage: talud", *names)) in " ".join(output.split()), names


def map_files(image: Path, model: Path, out: Path, variables: dict[str, str]) -> dict[str, bytes]:
    """Map an image in a process with environment variables; return the files of the map."""
    command = [sys.executable, "-c", RUN, "map", "--model", model, "--optical", image, "--out", out]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"not mapped" in done.stdout
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name not in ("timings.json", "stack.tif")}


@pytest.fixture(scope="module")
def usual_map(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, dict[str, bytes]]:
    """Return an image and the files of its map."""
    folder = tmp_path_factory.mktemp("consoles")
    values = np.random.default_rng(0).integers(30, 220, (3, 40, 50)).astype(np.uint8)
    image = write_raster(folder / "Cañón Ñ 地.tif", values)
    return image, map_files(image, tiny_model, folder / "usual" / "cuenca é", {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C"},
    ],
    ids=["latin-1", "ascii", "locale C"],
)
def test_map_is_identical_on_any_console(
    variables: dict[str, str], usual_map: tuple[Path, dict[str, bytes]], tmp_path: Path, tiny_model: Path
) -> None:
    image, expected = usual_map
    assert map_files(image, tiny_model, tmp_path / "other" / "cuenca é", variables) == expected


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_error_is_one_line_on_consoles_that_are_not_utf_8(encoding: str, tmp_path: Path, tiny_model: Path) -> None:
    missing = tmp_path / "地形 \udcff.tif"
    command = [sys.executable, "-c", RUN, "predict", tiny_model, missing, "--out", tmp_path / "map"]
    variables = {"PYTHONIOENCODING": f"{encoding}:strict"}
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert done.stderr.startswith(b"talud: ")
    assert b"?? ?.tif" in done.stderr
