"""Registered models: versions with their tags, the aliases that point to them, and the files inside."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.artifacts
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.entities.paged_list import PagedList
from mlflow.utils.file_utils import local_file_uri_to_path

from talud.errors import RegistryError
from talud.registry.leaderboard import SCORES
from talud.registry.store import connect, connected, speaking, user
from talud.text import utc_text

if TYPE_CHECKING:
    import onnx
    from mlflow.models import ModelSignature

ALIASES = ("champion", "challenger")
REGISTERED_BY = "registered_by"  # a tag
FINGERPRINT = "fingerprint"  # the tag that keeps one model from being registered twice
FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION, models:/MODEL_ID, runs:/RUN_ID/PATH, or where its files lie"
_NAMED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+|latest))")
_LOGGED = re.compile(r"models:/(?P<model_id>m-[0-9a-f]+)")
_ELSEWHERE = re.compile(r"(runs|mlflow-artifacts|file|s3|gs|wasbs|abfss|hdfs|dbfs|https?):/.+")


@dataclass(frozen=True)
class Fetched:
    """A model of the registry, on this machine.

    Attributes:
        path: the ONNX file.
        name: of the registered model; the URI where that names no registered version.
        version: of the registered model; empty likewise.
        run_id: the run that made it; empty where MLflow does not know.
    """

    path: Path
    name: str
    version: str
    run_id: str


@dataclass(frozen=True)
class Version:
    """A version of a registered model, as it was when it was looked up.

    Attributes:
        created: when it was registered, as ISO 8601 in UTC.
        aliases: that pointed to it then; they go to and fro, so that two versions are equal without them.
    """

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    created: str = ""
    aliases: tuple[str, ...] = field(default=(), compare=False)

    @property
    def uri(self) -> str:
        """The URI that names this version wherever the aliases go."""
        return f"models:/{self.name}/{self.version}"


def fetch(uri: str, root: Path | None) -> Fetched:
    """Bring a model to this machine. Files that lie on it already are used where they are.

    Args:
        uri: one of `FORMS`.
        root: the project's root, absolute; may be None where `MLFLOW_TRACKING_URI` names a server.

    Raises:
        RegistryError: the store cannot be used, has no such model, version or alias (those it has are named), or
            the model is not ONNX.
    """
    named, logged = _NAMED.fullmatch(uri), _LOGGED.fullmatch(uri)
    if not (named or logged or _ELSEWHERE.fullmatch(uri)):
        raise RegistryError(f"'{uri}' is no model URI; the forms are: {FORMS}")
    client = connect(root)
    name, version, run_id, place = uri, "", "", uri
    with speaking(uri):
        if named:
            found = _resolve(client, **named.groupdict())
            name, version, run_id = found.name, found.version, found.run_id
            place = client.get_model_version_download_uri(name, version)
        elif logged:
            place = f"models:/{logged['model_id']}"
        if place.startswith("models:/"):  # mlflow would write a file beside the model when it downloads such a URI
            model = client.get_logged_model(place.removeprefix("models:/"))
            run_id, place = model.source_run_id or run_id, model.artifact_location
        folder = _download(place, uri)
        manifest = _manifest(folder, uri)
    path = (folder / str(manifest.get("data"))).resolve()
    if not (path.is_file() and path.is_relative_to(folder.resolve())):
        raise RegistryError(f"{uri}: its file {path} is missing from the store; put it back, or name another version")
    return Fetched(path, name, version, run_id or str(manifest.get("run_id") or ""))


@dataclass(frozen=True)
class BrokenAlias:
    """An alias of a registered model whose version was deleted."""

    name: str
    alias: str
    version: str

    @property
    def words(self) -> str:
        """Return a sentence on the broken alias, with the command to repair it."""
        return (
            f"'{self.name}': its alias {self.alias} points to version {self.version}, which was deleted; run talud "
            f"models promote {self.name} VERSION (talud models list shows the versions)"
        )


def champion(name: str) -> Version | None:
    """Return the version of the alias `champion`; None if missing or deleted."""
    client = connected()
    with speaking():
        model = _registered(client, name)
        number = model.aliases.get("champion") if model else None
        found = _present(client, name, number) if number else None
        return _version(found) if found else None


def champions() -> tuple[Version, ...]:
    """Return the champions among the models that talud registered, by name.

    Champions that were deleted are not among them (`broken_aliases`).
    """
    client = connected()
    with speaking():
        named = [(model.name, model.aliases.get("champion")) for model in _all(client.search_registered_models)]
        found = [_present(client, name, number) for name, number in sorted(named) if number]
    return tuple(_version(each) for each in found if each and FINGERPRINT in each.tags)


def broken_aliases() -> tuple[BrokenAlias, ...]:
    """Return the aliases that point to deleted versions, by model name.

    All registered models and all names in `ALIASES` are considered.
    """
    client = connected()
    with speaking():
        models = _all(client.search_registered_models)
        there = {(each.name, str(each.version)) for each in _all(client.search_model_versions)}
    named = [(model.name, alias, str(number)) for model in models for alias, number in model.aliases.items()]
    return tuple(
        BrokenAlias(name, alias, number)
        for name, alias, number in sorted(named)
        if alias in ALIASES and (name, number) not in there
    )


def versions() -> tuple[Version, ...]:
    """All versions of the models that talud registered: by name, the newest first."""
    client = connected()
    with speaking():
        models = _all(client.search_registered_models)
        found = _all(client.search_model_versions)
    aliases = {model.name: model.aliases for model in models}  # what lists versions leaves them out
    ours = [_version(each, aliases.get(each.name, {})) for each in found if FINGERPRINT in each.tags]
    return tuple(sorted(ours, key=lambda version: (version.name, -int(version.version))))


def _all(search: Callable[..., PagedList[Any]]) -> list[Any]:
    """Every page of what a search finds."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def model_uri(reference: str) -> str:
    """The URI of a registered model: `NAME` is its champion, `NAME@ALIAS` and `NAME/VERSION` are as they say.

    A URI stays as it is.
    """
    if ":/" in reference:
        return reference
    return f"models:/{reference}" if re.search(r"[@/]", reference) else f"models:/{reference}@champion"


def look_up(reference: str) -> Version:
    """The registered version that a reference names: `NAME`, `NAME@ALIAS` or `NAME/VERSION`, `models:/` before or not.

    Raises:
        RegistryError: the store has no such model, version or alias (those it has are named).
    """
    named = _NAMED.fullmatch(model_uri(reference))
    if not named:
        raise RegistryError(f"'{reference}' names no registered version; the forms are NAME, NAME@ALIAS, NAME/VERSION")
    client = connected()
    with speaking(reference):
        return _resolve(client, **named.groupdict())


def set_alias(version: Version, alias: str) -> None:
    """Point one of the `ALIASES` to a version, which then bears no other of them.

    The other aliases of its model go where the version that they point to was deleted.
    """
    client = connected()
    with speaking():
        model = client.get_registered_model(version.name)
        if str(model.aliases.get(alias)) != version.version:
            client.set_registered_model_alias(version.name, alias, version.version)
        for other in ALIASES:
            number = model.aliases.get(other)
            if other == alias or number is None:
                continue
            if str(number) == version.version or _present(client, version.name, number) is None:
                client.delete_registered_model_alias(version.name, other)


def find(name: str, fingerprint: str) -> Version | None:
    """The version of a registered model that holds the model of that fingerprint."""
    with speaking():
        found = connected().search_model_versions(f"name = '{name}' and tags.`{FINGERPRINT}` = '{fingerprint}'")
        return _version(found[0]) if found else None


def register(name: str, model: onnx.ModelProto, run_id: str, fingerprint: str) -> Version:
    """Log an ONNX model to a run and make it a version of a registered model, which is made where there is none.

    Args:
        name: of the registered model.
        model: with its weights inside.
        run_id: of the trial; the run's scores become the model's.
        fingerprint: tells this model from others; `find` finds it by that.

    Raises:
        RegistryError: the store cannot be used.
    """
    client = connected()
    with speaking():
        if _registered(client, name) is None:
            client.create_registered_model(name)
        model_id = _log(client, name, model, run_id)
        made = client.create_model_version(
            name,
            f"models:/{model_id}",
            run_id,
            {FINGERPRINT: fingerprint, REGISTERED_BY: user()},
            model_id=model_id,
        )
        return _version(made)


def put_back(version: Version, model: onnx.ModelProto) -> None:
    """Log the files of a version again where the store has lost some, or never got all; `model` is what it holds.

    Raises:
        RegistryError: the store cannot be used.
    """
    client = connected()
    with speaking(version.uri):
        source = client.get_model_version(version.name, version.version).source
        logged = client.get_logged_model(str(source).removeprefix("models:/"))
        there = {Path(file.path).name for file in client.list_logged_model_artifacts(logged.model_id)}
        if not there >= {"MLmodel", "model.onnx"}:
            _upload(client, logged, model, version.run_id)


def add_file(version: Version, path: Path, name: str) -> None:
    """Put a file beside the model of a version, under a name, in the place of one that has it already.

    Raises:
        RegistryError: the store cannot be used.
    """
    client = connected()
    with speaking(version.uri), tempfile.TemporaryDirectory(prefix="talud-") as folder:
        shutil.copy(path, Path(folder) / name)
        source = client.get_model_version(version.name, version.version).source
        client.log_model_artifacts(str(source).removeprefix("models:/"), folder)


def describe(version: Version, tags: Mapping[str, str], description: str | None = None) -> None:
    """Set tags of a version, and its description (Markdown); tags that are not named here stay."""
    client = connected()
    with speaking():
        for key, value in tags.items():
            if version.tags.get(key) != value:
                client.set_model_version_tag(version.name, version.version, key, value)
        if description is not None:
            client.update_model_version(version.name, version.version, description)


def _log(client: MlflowClient, name: str, model: onnx.ModelProto, run_id: str) -> str:
    """Log a model as mlflow.onnx.log_model does, which however works on a global run and experiment; its id."""
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


def _upload(client: MlflowClient, logged: LoggedModel, model: onnx.ModelProto, run_id: str) -> None:
    """Bring the files of a logged model to the store, MLmodel last: where it is, the others are whole."""
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
    """What goes in and comes out: names, float32, and shapes with -1 where a side is free."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(values: list[onnx.ValueInfoProto]) -> Schema:
        shapes = {value.name: [side.dim_value or -1 for side in value.type.tensor_type.shape.dim] for value in values}
        return Schema([TensorSpec(np.dtype(np.float32), tuple(shape), name) for name, shape in shapes.items()])

    return ModelSignature(schema(model.graph.input), schema(model.graph.output))


def _registered(client: MlflowClient, name: str) -> RegisteredModel | None:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _present(client: MlflowClient, name: str, number: Any) -> ModelVersion | None:
    """Return a version of a registered model; None where it was deleted."""
    try:
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _version(found: ModelVersion, aliases: Mapping[str, Any] | None = None) -> Version:
    """A version as MLflow has it; the aliases of its model, alias → version, where the version does not name them."""
    created = utc_text(datetime.fromtimestamp(found.creation_timestamp / 1000, UTC))
    number = str(found.version)
    theirs = found.aliases if aliases is None else [alias for alias, at in aliases.items() if str(at) == number]
    return Version(found.name, number, found.run_id or "", dict(found.tags), created, tuple(sorted(theirs)))


def _resolve(client: MlflowClient, name: str, alias: str | None, version: str | None) -> Version:
    model = _registered(client, name)
    if model is None:
        names = [found.name for found in client.search_registered_models()]
        raise RegistryError(f"no registered model '{name}'; there are: {', '.join(names) or 'none'}")
    if alias is not None and alias not in model.aliases:
        there = ", ".join(f"{known} (version {number})" for known, number in sorted(model.aliases.items()))
        raise RegistryError(f"'{name}' has no alias '{alias}'; it has: {there or 'none'}")
    versions = {str(found.version): found for found in client.search_model_versions(f"name = '{name}'")}
    number = model.aliases[alias] if alias else version
    if number == "latest":
        number = max(versions, key=int, default=number)
    if alias and str(number) not in versions:
        raise RegistryError(BrokenAlias(name, alias, str(number)).words)
    if str(number) not in versions:
        there = ", ".join(sorted(versions, key=int))
        raise RegistryError(f"'{name}' has no version {number}; it has: {there or 'none'}")
    return _version(versions[str(number)], model.aliases)


def _download(place: str, uri: str) -> Path:
    """The folder of a model: itself where it lies on this machine, else a copy that goes when the process ends."""
    local = place.startswith("file:") or ":/" not in place
    if local and not Path(local_file_uri_to_path(place)).exists():  # type: ignore[no-untyped-call]
        raise RegistryError(
            f"{uri}: its files are missing from {place}; put them back, or run talud register, which brings those of "
            "models/ to the store again"
        )
    folder = None if local else tempfile.mkdtemp(prefix="talud-")
    if folder is not None:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=place, dst_path=folder))
    except OSError as error:
        raise RegistryError(f"{uri}: its files cannot be read from {place}: {error.strerror or error}") from error


def _manifest(folder: Path, uri: str) -> dict[str, Any]:
    """What MLflow's file MLmodel says of an ONNX model."""
    try:
        manifest = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        flavors = dict(manifest["flavors"])
    except (OSError, yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, ValueError) as error:
        raise RegistryError(f"{uri}: no MLflow model lies at {folder}") from error
    if "onnx" not in flavors:
        raise RegistryError(
            f"{uri}: is a model of flavor {', '.join(sorted(flavors))}, not onnx; name one that talud register made"
        )
    return {**manifest, **flavors["onnx"]}
