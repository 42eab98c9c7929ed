"""Upload and download of the files of runs and models."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import mlflow.artifacts
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.utils.file_utils import local_file_uri_to_path

from talud.errors import RegistryError
from talud.registry.connection import SCORES, default_store, translated_errors

if TYPE_CHECKING:
    import onnx
    from mlflow.models import ModelSignature


@dataclass(frozen=True)
class FetchedModel:
    """Model of the registry, with its file on this machine.

    Attributes:
        path: path of the ONNX file.
        name: name of the registered model, or the URI if it names no registered version.
        version: registered version; empty if the URI names none.
        run_id: id of the run that made the model; empty if unknown.
    """

    path: Path
    name: str
    version: str
    run_id: str


def log_file(client: MlflowClient, run_id: str, content: bytes, name: str) -> None:
    """Store a file with a run, or replace it.

    Args:
        client: client of the store.
        run_id: id of the run.
        content: content of the file.
        name: path of the file below the run's artifacts.

    Raises:
        RegistryError: The store is not available, or is full.
    """
    path = PurePosixPath(name)
    folder = None if path.parent == PurePosixPath() else str(path.parent)
    with translated_errors(name), tempfile.TemporaryDirectory(prefix="talud-") as scratch:
        file = Path(scratch) / path.name
        file.write_bytes(content)
        client.log_artifact(run_id, str(file), folder)


def fetch(client: MlflowClient, uri: str, location: str, run_id: str = "") -> tuple[Path, str]:
    """Return a model's ONNX file and its run's id.

    Local files are used in place.

    Args:
        client: client of the store.
        uri: URI of the model as given by the user, for messages.
        location: URI of the model's folder, or models:/MODEL_ID.
        run_id: id of the run that made the model, if known.

    Raises:
        RegistryError: The files are missing or unreadable, or the model is not ONNX.
    """
    if location.startswith("models:/"):
        # Resolved here, because MLflow writes a file next to the model when it downloads such a URI.
        model = client.get_logged_model(location.removeprefix("models:/"))
        run_id, location = model.source_run_id or run_id, model.artifact_location
    folder = _download(client, location, uri)
    manifest = _manifest(folder, uri)
    path = (folder / str(manifest.get("data"))).resolve()
    if not (path.is_file() and path.is_relative_to(folder.resolve())):
        raise RegistryError(f"{uri}: its file {path} is missing from the store; restore it, or choose another version")
    return path, run_id or str(manifest.get("run_id") or "")


def log_model(client: MlflowClient, name: str, model: onnx.ModelProto, run_id: str) -> str:
    """Log a model to a run; return the model's id.

    The function `mlflow.onnx.log_model` does the same, but only in MLflow's default store and its active run.
    """
    run = client.get_run(run_id)
    logged = client.create_logged_model(run.info.experiment_id, name, run_id, params=run.data.params, model_type="onnx")
    _upload(client, logged, model, run_id)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    scores = [client.get_metric_history(run_id, score)[-1] for score in run.data.metrics if score in SCORES]
    client.log_batch(
        run_id, [Metric(m.key, m.value, m.timestamp, m.step, model_id=logged.model_id, run_id=run_id) for m in scores]
    )
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return str(logged.model_id)


def upload_missing_files(client: MlflowClient, model_id: str, model: onnx.ModelProto, run_id: str) -> None:
    """Upload a logged model's files if some are missing."""
    logged = client.get_logged_model(model_id)
    found = {Path(file.path).name for file in client.list_logged_model_artifacts(logged.model_id)}
    if not found >= {"MLmodel", "model.onnx"}:
        _upload(client, logged, model, run_id)


def add_file(client: MlflowClient, model_id: str, path: Path, name: str) -> None:
    """Upload a file next to a logged model."""
    with tempfile.TemporaryDirectory(prefix="talud-") as folder:
        shutil.copy(path, Path(folder) / name)
        client.log_model_artifacts(model_id, folder)


def _upload(client: MlflowClient, logged: LoggedModel, model: onnx.ModelProto, run_id: str) -> None:
    """Upload the files of a logged model.

    MLmodel is last, so that its presence shows that all files are complete.
    """
    import mlflow.onnx
    import onnx
    import onnxruntime
    from mlflow.models import Model as Manifest

    manifest = Manifest(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id)
    with tempfile.TemporaryDirectory(prefix="talud-") as folder:
        mlflow.onnx.save_model(
            model,
            str(Path(folder) / "model"),
            mlflow_model=manifest,
            signature=_signature(model),
            pip_requirements=[f"onnx=={onnx.__version__}", f"onnxruntime=={onnxruntime.__version__}"],
            save_as_external_data=False,
        )
        last = (Path(folder) / "model/MLmodel").rename(Path(folder) / "MLmodel")
        client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
        client.log_model_artifact(logged.model_id, str(last))


def _signature(model: onnx.ModelProto) -> ModelSignature:
    """Return names and shapes of input and output.

    A free side has size -1.
    """
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(values: list[onnx.ValueInfoProto]) -> Schema:
        shapes = {value.name: [side.dim_value or -1 for side in value.type.tensor_type.shape.dim] for value in values}
        return Schema([TensorSpec(np.dtype(np.float32), tuple(shape), name) for name, shape in shapes.items()])

    return ModelSignature(schema(model.graph.input), schema(model.graph.output))


def _download(client: MlflowClient, location: str, uri: str) -> Path:
    """Return a model's folder, or a copy if remote."""
    local = location.startswith("file:") or ":/" not in location
    if local and not Path(local_file_uri_to_path(location)).exists():  # type: ignore[no-untyped-call]
        raise RegistryError(
            f"{uri}: its files are missing from {location}; restore them, or run talud register to upload the "
            "models in models/ again"
        )
    folder = None if local else tempfile.mkdtemp(prefix="talud-")
    if folder is not None:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        with default_store(client) if location.startswith("runs:/") else nullcontext():
            found = mlflow.artifacts.download_artifacts(location, dst_path=folder, tracking_uri=client.tracking_uri)
    except OSError as error:
        raise RegistryError(f"{uri}: its files cannot be read from {location}: {error.strerror or error}") from error
    return Path(found)


def _manifest(folder: Path, uri: str) -> dict[str, Any]:
    """Read the file MLmodel of an ONNX model.

    Raises:
        RegistryError: The folder holds no MLflow model, or one that is not ONNX.
    """
    try:
        manifest = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        flavors = dict(manifest["flavors"])
    except (OSError, yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, ValueError) as error:
        raise RegistryError(f"{uri}: no MLflow model at {folder}") from error
    if "onnx" not in flavors:
        raise RegistryError(
            f"{uri}: is a model of flavor {', '.join(sorted(flavors))}, not onnx; choose one made by talud register"
        )
    return {**manifest, **flavors["onnx"]}
