"""Tests of empty arguments, which are usage errors of every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import Run


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "model.onnx", "raster.tif", "--out", ""],
        ["predict", "model.onnx", "raster.tif", "--out="],
        ["predict", "", "raster.tif", "--out", "map"],
        ["stack", "--like", "model.onnx", "--optical", "raster.tif", "--out", ""],
        ["adapt", "model.onnx", "raster.tif", "--out", ""],
        ["inventory", "import", "", "--area", "here"],
        ["models", "compare", "a.onnx", "b.onnx", "--area", "here", "--out", ""],
    ],
)
def test_empty_argument_is_a_usage_error(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    talud: Run,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = talud(*arguments)
    assert code == 2
    assert "an argument is empty" in err
    assert not list(tmp_path.iterdir())
