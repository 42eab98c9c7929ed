"""Fuzz tests of output paths and environments.

The result is correct and inputs are unchanged, or there is one line of error.

Cases are named as in `test_fuzz`: `pytest tests/cli/test_fuzz_outputs.py -k "output-predict-a-symlink"` runs one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import rasterio

from hostile_process import Worker, check_refusal
from map_oracle import PRODUCTS, check_map
from stack_files import noise, write_stack

Ends = Literal["result", "refusal", "usage", "either"]
Prepare = Callable[[Path], str]  # folder with model.onnx and raster.tif → output argument

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"))
    yield worker
    worker.stop()


def typed(text: str) -> Prepare:
    return lambda folder: text


def symlink_to(target: str, name: str = "link") -> Prepare:
    def prepare(folder: Path) -> str:
        (folder / name).symlink_to(folder / target)
        return name

    return prepare


def hard_link_to(target: str) -> Prepare:
    def prepare(folder: Path) -> str:
        os.link(folder / target, folder / "link")
        return "link"

    return prepare


def through_a_linked_folder(target: str) -> Prepare:
    def prepare(folder: Path) -> str:
        (folder / "linked").symlink_to(folder, target_is_directory=True)
        return f"linked/{target}"

    return prepare


def broken_link(folder: Path) -> str:
    (folder / "link").symlink_to(folder / "missing")
    return "link"


def loop(folder: Path) -> str:
    (folder / "link").symlink_to(folder / "link")
    return "link"


def a_file(folder: Path) -> str:
    (folder / "taken").write_text("a user's own")
    return "taken"


def a_folder(folder: Path) -> str:
    (folder / "taken").mkdir()
    (folder / "taken" / "notes.txt").write_text("a user's own")
    return "taken"


def a_pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return "pipe"


def own_product(name: str) -> Prepare:
    """Return a function that makes a folder with a user's file.

    The file has the name of a product.
    """

    def prepare(folder: Path) -> str:
        (folder / "basin").mkdir()
        (folder / "basin" / name).write_text("a user's own")
        return "basin"

    return prepare


# Cases of files and of folders.
TAKEN: dict[str, Prepare] = {
    "the raster": typed("raster.tif"),
    "the model": typed("model.onnx"),
    "the raster by another way": typed("./../{name}/raster.tif"),
    "the model by its whole path": typed("{folder}/model.onnx"),
    "a symlink to the raster": symlink_to("raster.tif"),
    "a symlink to the model": symlink_to("model.onnx"),
    "a hard link to the raster": hard_link_to("raster.tif"),
    "a hard link to the model": hard_link_to("model.onnx"),
    "the raster in a linked folder": through_a_linked_folder("raster.tif"),
    "the model in a linked folder": through_a_linked_folder("model.onnx"),
    "below the raster": typed("raster.tif/result"),
    "below the model": typed("model.onnx/result"),
    "a pipe": a_pipe,
    "in the process table": typed("/proc/result"),
    "a link to itself": loop,
    "a name of 300 characters": typed("n" * 300),
    "a path of 5000 characters": typed("n/" * 2500),
}
FREE: dict[str, Prepare] = {
    "new": typed("result"),
    "below missing folders": typed("a/b/c/result"),
    "with blanks": typed("  a result  "),
    "with an accent": typed("cañón"),
    "with an emoji": typed("⛰ result"),
    "with an exclamation mark": typed("result!"),
    "with an escape": typed("re%20sult"),
    "with a question mark": typed("what?a=1&b=2"),
    "with a hash": typed("a#b"),
    "with quotes": typed('it\'s "so"'),
    "with brackets": typed("[a]{b}(c)"),
    "with a line break": typed("two\nlines"),
    "with a backslash": typed("a\\b"),
    "with a colon": typed("c:result"),
    "with a dollar": typed("$HOME"),
    "with a tilde": typed("~result"),
    "with a leading dash": typed("./-result"),
    "hidden": typed(".result"),
    "with a dot at its end": typed("result."),
    "by a broken link": broken_link,
}
COMMANDS: dict[str, list[str]] = {
    "predict": ["predict", "model.onnx", "raster.tif"],
    "map": ["map", "--model", "model.onnx", "--optical", "raster.tif"],
    "stack": ["stack", "--like", "model.onnx", "--optical", "raster.tif"],
}


@dataclass(frozen=True)
class Output:
    """An output path given to a command."""

    name: str
    command: str
    ends: Ends
    prepare: Prepare


def outputs() -> Iterator[Output]:
    for command in COMMANDS:
        for name, prepare in TAKEN.items():
            yield Output(f"output-{command}-{name}", command, "refusal", prepare)
        yield Output(f"output-{command}-empty", command, "usage", typed(""))
        for name, prepare in FREE.items():
            ends: Ends = "either" if "broken" in name else "result"
            yield Output(f"output-{command}-{name}", command, ends, prepare)
    for command in ("predict", "map"):
        yield Output(f"output-{command}-a file", command, "refusal", a_file)
        yield Output(f"output-{command}-a folder", command, "result", a_folder)
        for product in ("landslides.gpkg", "probability.tif", "summary.html"):
            yield Output(f"output-{command}-own {product}", command, "refusal", own_product(product))
    yield Output("output-map-own stack.tif", "map", "refusal", own_product("stack.tif"))
    yield Output("output-stack-a folder", "stack", "refusal", a_folder)


OUTPUTS = list(outputs())


def inputs(folder: Path, tiny_model: Path) -> None:
    """Write a model and a matching raster with a hole."""
    shutil.copyfile(tiny_model, folder / "model.onnx")
    values = noise(20, 28)
    values[:, 3:9, 3:9] = np.nan
    write_stack(folder / "raster.tif", values, units=("DN", "DN", "DN"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", OUTPUTS, ids=lambda case: case.name)
def test_hostile_output_path_works_or_fails_in_one_line(
    case: Output, worker: Worker, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    inputs(folder, tiny_model)
    out = case.prepare(folder)
    out = out.replace("{folder}", str(folder)).replace("{name}", folder.name)
    before = contents(folder)
    code, output, err = worker.run(*COMMANDS[case.command], "--out", out, folder=folder)
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before
    if case.ends == "usage":
        assert (code, output) == (2, "")
        assert "Usage: talud" in err
        assert after == before
    elif case.ends == "result" or (case.ends == "either" and code == 0):
        assert (code, err) == (0, "")
        check_result(case.command, folder, folder / out)
    else:
        check_refusal(code, output, err)
        assert after == before
        print(err)  # pytest -rP shows the error of each case
    assert not list(tmp_path.rglob(".*.partial"))


def check_result(command: str, folder: Path, out: Path) -> None:
    """Assert that the files of a command exist and are correct."""
    if command == "stack":
        with rasterio.open(folder / "raster.tif") as raster, rasterio.open(out) as made:
            assert np.array_equal(made.read(), raster.read(), equal_nan=True)
            assert (made.crs, made.transform) == (raster.crs, raster.transform)
        return
    own = {"notes.txt"} | ({"stack.tif"} if command == "map" else set())
    found = {path.name for path in out.iterdir()} - own
    assert found == PRODUCTS
    checked = folder / "checked"
    checked.mkdir()
    for name in PRODUCTS:
        shutil.copyfile(out / name, checked / name)
    check_map(checked, folder / "model.onnx", str(folder / "raster.tif"))


# The encoding of the locale applies only if PYTHONIOENCODING is not set.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "PROJ data of Debian": {"PROJ_DATA": "/usr/share/proj"},
    "PROJ data of Debian, by the old name": {"PROJ_LIB": "/usr/share/proj"},
    "PROJ data that is missing": {"PROJ_DATA": "/nowhere", "PROJ_LIB": "/nowhere"},
    "GDAL data of Debian": {"GDAL_DATA": "/usr/share/gdal"},
    "GDAL data that is missing": {"GDAL_DATA": "/nowhere", "GDAL_DRIVER_PATH": "/nowhere"},
    "PROJ by network": {"PROJ_NETWORK": "ON"},
    "two numbers of threads": {"OMP_NUM_THREADS": "2,1"},
    "no thread": {"OMP_NUM_THREADS": "0"},
    "fewer than no thread": {"OMP_NUM_THREADS": "-1"},
    "threads in words": {"OMP_NUM_THREADS": "many"},
    "threads left empty": {"OMP_NUM_THREADS": ""},
    "a huge number of threads": {"OMP_NUM_THREADS": "1" + "0" * 30},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Windows-1252": {"PYTHONIOENCODING": "cp1252"},
    "the locale C": {
        "LC_ALL": "C",
        "LANG": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "",
    },
    "no driver of COG": {"GDAL_SKIP": "COG"},
    "no driver of PNG and JPEG": {"GDAL_SKIP": "PNG,JPEG"},
    "no driver of GeoPackage": {"OGR_SKIP": "GPKG", "GDAL_SKIP": "GPKG"},
    "no folders read": {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"},
    "no side files": {"GDAL_PAM_ENABLED": "NO"},
    "a tiny cache": {"GDAL_CACHEMAX": "1"},
    "all processors": {"GDAL_NUM_THREADS": "ALL_CPUS"},
    "one pixel of points": {"GTIFF_POINT_GEO_IGNORE": "TRUE"},
    "no internal masks": {"GDAL_TIFF_INTERNAL_MASK": "NO"},
    "coordinates the other way round": {"OSR_DEFAULT_AXIS_MAPPING_STRATEGY": "AUTHORITY_COMPLIANT"},
    "a journal of SQLite": {"OGR_SQLITE_JOURNAL": "WAL", "OGR_SQLITE_SYNCHRONOUS": "OFF"},
    "a dumb terminal": {"TERM": "dumb", "COLUMNS": "1", "NO_COLOR": "1"},
    "a terminal of colours": {"FORCE_COLOR": "1", "TERM": "xterm-256color"},
    "no home": {"HOME": "/nowhere", "XDG_CACHE_HOME": "/nowhere", "XDG_CONFIG_HOME": "/nowhere"},
    "another zone": {"TZ": "Pacific/Apia"},
    "no docstrings": {"PYTHONOPTIMIZE": "2"},
    "a seed of hashes": {"PYTHONHASHSEED": "7"},
    "a store that is none": {"MLFLOW_TRACKING_URI": "nonsense://nowhere"},
    "a proxy that is none": {"HTTPS_PROXY": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"},
}
GDAL_AND_PROJ_PREFIXES = ("PROJ_", "GDAL_", "OGR_", "OSR_", "GTIFF_", "CPL_")  # ignored by talud with a warning
ALLOWED_VARIABLES = ("PROJ_NETWORK", "GDAL_CACHEMAX", "GDAL_NUM_THREADS")  # allowed


def group_environments() -> list[dict[str, dict[str, str]]]:
    """Group environments that set different variables, to test a group in one process."""
    groups: list[dict[str, dict[str, str]]] = []
    for name, variables in ENVIRONMENTS.items():
        for group in groups:
            if not any(variables.keys() & others.keys() for others in group.values()):
                group[name] = variables
                break
        else:
            groups.append({name: variables})
    return groups


@pytest.mark.parametrize("group", group_environments(), ids="; ".join)
def test_hostile_environment_gives_identical_maps(
    group: dict[str, dict[str, str]], tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    variables = {variable: value for one in group.values() for variable, value in one.items()}
    worker = Worker(tmp_path, variables)
    try:
        for command in ("predict", "map"):
            folder = tmp_path / command
            folder.mkdir()
            inputs(folder, tiny_model)
            code, _, err = worker.run(*COMMANDS[command], "--out", "map", folder=folder)
            assert (code, err) == (0, "")
            check_result(command, folder, folder / "map")
    finally:
        worker.stop()
    # The warning is printed once, at the start of the process.
    output = capfd.readouterr().err
    ignored = [name for name in variables if name.startswith(GDAL_AND_PROJ_PREFIXES) and name not in ALLOWED_VARIABLES]
    assert output.count("\n") == (1 if ignored else 0), output
    assert all(name in output for name in ignored)
