"""Fixtures and settings of all tests."""

from __future__ import annotations

import gc
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import hypothesis
import pyogrio  # noqa: F401 - before TensorFlow, which holds a SQLite of its own: GDAL would write GeoPackages of other bytes with it
import pytest
from sqlalchemy import Engine, create_engine, inspect

from command_line import Run, runner
from fresh_clone import ROOT, Demo, clone, link_packages, required_packages
from talud.bands import Group
from talud.contract import BandContract, Contract, Measurements, ModelInput, ModelOrigin

# The duration of an example depends on the machine more than on the code.
hypothesis.settings.register_profile("talud", deadline=None)
hypothesis.settings.load_profile("talud")

DEMO_SEARCH = "batch_size: [4, 8]\n    epochs: 10\n"
SHORT_SEARCH = "batch_size: [4]\n    epochs: 4\n"
MIDDLE_BAND_SET = "  5band: [red, green, blue, slope, curvature]\n"
REAL_DATA = ROOT.parent / "shared" / "data"
# Files that take half a minute or longer, the longest first.
LONGEST_FILES = (
    "test_demo.py",
    "training/test_study.py",
    "serving/test_jobs.py",
    "training/test_trial.py",
    "training/test_networks.py",
    "test_team.py",
    "serving/test_outages.py",
    "mapping/test_workers.py",
    "serving/test_deployment.py",
    "training/test_trial_workers.py",
    "serving/test_page.py",
    "serving/test_interface.py",
    "test_own_basin.py",
    "mapping/test_journal.py",
    "networks/test_unet.py",
    "training/test_lost_server.py",
    "mapping/test_virtual_paths.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests without their real data, and sort files by duration."""
    if not REAL_DATA.is_dir():
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason="the real data is not at ../shared/data"))
    # Two processes finish at about the same time if long files come first: those above, files with slow tests, others.
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    longest = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: (longest.get(item.path, len(longest)), item.path not in slow_files))


def pytest_collection_finish() -> None:
    """Remove environment variables of imported libraries, and freeze their objects.

    The processes that tests start must not inherit the log level that JAX sets for TensorFlow. Keras collects garbage
    before each training, and some tests do to find open files: with the objects of all libraries that took half a
    second.
    """
    for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"):
        os.environ.pop(name, None)
    gc.collect()
    gc.freeze()


@pytest.fixture
def talud(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture
def eager_tensorflow() -> Iterator[None]:
    """Run TensorFlow's functions without tracing, which takes longer than a few steps of training."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of the real data."""
    return REAL_DATA


@pytest.fixture(scope="session", autouse=True)
def _empty_working_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run tests in an empty folder.

    A map that is made inside this repository would be recorded in it, as in any project.
    """
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("working_directory"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session", autouse=True)
def _tables_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Create MLflow's tables once, and copy them to each new SQLite store.

    MLflow runs dozens of migrations for each new store.
    """
    from mlflow.store.db import utils

    template, make = tmp_path_factory.mktemp("tables") / "mlflow.db", utils._initialize_tables

    def copy(engine: Engine) -> None:
        if engine.dialect.name != "sqlite" or inspect(engine).get_table_names():
            make(engine)
            return
        if not template.exists():
            made = create_engine(f"sqlite:///{template}")
            make(made)
            made.dispose()
        with closing(sqlite3.connect(template)) as tables, engine.connect() as store:
            tables.backup(store.connection.driver_connection)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", copy)
        yield


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Run the demo once, for all tests marked `demo`.

    Its environment holds the packages of the extra `train` only, linked from the environment of the tests. The demo's
    own installer compares it with the lock file and downloads missing packages. The band sets are those with the
    fewest and the most bands. The search has one trial for each, with fewer epochs and patches than the demo of a user.
    """
    root = clone(tmp_path_factory.mktemp("demo") / "talud")
    subprocess.run(["make", ".venv/bin/pip"], cwd=root, check=True)
    link_packages(required_packages("talud", "train"), root / ".venv")
    params = root / "params.yaml"
    text = params.read_text()
    for former, new in ((DEMO_SEARCH, SHORT_SEARCH), (MIDDLE_BAND_SET, ""), ("  stride: 32\n", "  stride: 64\n")):
        assert former in text
        text = text.replace(former, new, 1)
    params.write_text(text)
    author = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    subprocess.run(
        ["git", *author, "commit", "--quiet", "--message", "Shorten the search", "params.yaml"], cwd=root, check=True
    )
    result = subprocess.run(["make", "demo"], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return Demo(root, result.stdout)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export an untrained model of red, green and blue, with 4 filters and depth 2."""
    import numpy as np

    from onnx_writer import to_onnx
    from talud.engine.margins import receptive_field
    from talud.engine.model_file import weights_digest
    from talud.networks import unet
    from talud.training import export

    mean, deviation = np.array([90, 110, 70], np.float32), np.array([30, 40, 20], np.float32)
    graph = to_onnx(unet.build(filters=4, depth=2, mean=mean, deviation=deviation, seed=3))
    field = receptive_field(graph)
    bands = tuple(
        BandContract(
            name=name,
            group=Group.OPTICAL,
            unit="DN",
            lowest=-250,
            highest=500,
            mean=centre,
            deviation=spread,
            minimum=0,
            maximum=250,
        )
        for name, centre, spread in zip(("red", "green", "blue"), mean.tolist(), deviation.tolist(), strict=True)
    )
    contract = Contract(
        input=ModelInput(
            bands=bands,
            required_groups=(Group.OPTICAL,),
            pixel_size=12.5,
            halo=field.halo,
            alignment=field.alignment,
            stack={"resolution": "12.5"},
        ),
        origin=ModelOrigin(
            name="3band",
            weights=weights_digest(graph),
            data_version="0" * 32,
            areas=("nowhere",),
            commit="unknown",
            run_id="0" * 32,
            hyperparameters={"filters": 4, "depth": 2},
        ),
        measured=Measurements(
            threshold=0.5,
            scores={"precision": 0.6, "recall": 0.6, "f1": 0.6, "iou": 0.43},
        ),
    )
    path = tmp_path_factory.mktemp("tiny_model") / "tiny.onnx"
    export.save_model(graph, contract, path)
    return path
