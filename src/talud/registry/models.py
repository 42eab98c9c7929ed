"""Registered models: versions, tags, aliases, promotion history and files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.entities.paged_list import PagedList

from talud.errors import RegistryError
from talud.registry import files
from talud.registry.connection import current_user, default_store, translated_errors
from talud.registry.files import FetchedModel
from talud.text import utc_text

if TYPE_CHECKING:
    import onnx

ALIASES = ("champion", "challenger")
# Tags of a version. The fingerprint prevents a second registration of the same model.
FINGERPRINT_TAG = "fingerprint"
REGISTERED_BY_TAG = "registered_by"
PROMOTED_BY_TAG, PROMOTED_AT_TAG = "promoted_by", "promoted_at"
# Version of the previous champion, to which a rollback returns.
REPLACED_TAG = "replaced"
# User and time of a demotion by hand; the pipeline does not promote such a version again.
SET_ASIDE_TAG = "set_aside"
URI_FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION, models:/MODEL_ID, runs:/RUN_ID/PATH, or a path to its files"
_NAMED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+|latest))")
_LOGGED = re.compile(r"models:/m-[0-9a-f]+")
_ELSEWHERE = re.compile(r"(runs|mlflow-artifacts|file|s3|gs|wasbs|abfss|hdfs|dbfs|https?):/.+")


@dataclass(frozen=True)
class ModelVersion:
    """Version of a registered model when it was queried.

    Attributes:
        name: name of the registered model.
        version: number of the version.
        run_id: id of the run that made it.
        tags: tags of the version.
        created: time of registration, as ISO 8601 in UTC.
        aliases: aliases of the version. They can move, so they are not compared.
    """

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    created: str = ""
    aliases: tuple[str, ...] = field(default=(), compare=False)

    @property
    def uri(self) -> str:
        """URI of this version, independent of aliases."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class BrokenAlias:
    """Alias that points to a deleted version."""

    name: str
    alias: str
    version: str

    @property
    def message(self) -> str:
        """Description of the problem, with the command to repair it."""
        return (
            f"'{self.name}': its alias {self.alias} points to version {self.version}, which was deleted; run talud "
            f"models promote {self.name} VERSION (talud models list shows the versions)"
        )


def model_uri(reference: str) -> str:
    """Return the URI of a registered model.

    `NAME` is its champion, `NAME@ALIAS` and `NAME/VERSION` that version; a URI is returned unchanged.
    """
    if ":/" in reference:
        return reference
    return f"models:/{reference}" if re.search(r"[@/]", reference) else f"models:/{reference}@champion"


def check_uri(uri: str) -> None:
    """Check that a URI has one of the `URI_FORMS`.

    Raises:
        RegistryError: The URI has another form.
    """
    if not any(form.fullmatch(uri) for form in (_NAMED, _LOGGED, _ELSEWHERE)):
        raise RegistryError(f"'{uri}' is not a model URI; valid forms are: {URI_FORMS}")


@dataclass(frozen=True)
class Models:
    """Registered models; methods raise a RegistryError without a store."""

    client: MlflowClient

    def fetch(self, uri: str) -> FetchedModel:
        """Fetch a model to this machine; use local files in place.

        Args:
            uri: URI in one of the `URI_FORMS`.

        Raises:
            RegistryError: The store is not available or lacks the model, version or alias (the message lists the
                existing ones), or the model is not ONNX.
        """
        check_uri(uri)
        named = _NAMED.fullmatch(uri)
        with translated_errors(uri):
            if named is None:
                path, run_id = files.fetch(self.client, uri, uri)
                return FetchedModel(path, uri, "", run_id)
            version = self._resolve(**named.groupdict())
            location = self.client.get_model_version_download_uri(version.name, version.version)
            path, run_id = files.fetch(self.client, uri, location, version.run_id)
            return FetchedModel(path, version.name, version.version, run_id)

    def look_up(self, reference: str) -> ModelVersion:
        """Return the registered version that a reference names.

        Args:
            reference: `NAME`, `NAME@ALIAS` or `NAME/VERSION`, with or without `models:/` in front.

        Raises:
            RegistryError: The store lacks the model, version or alias; the message lists the existing ones.
        """
        named = _NAMED.fullmatch(model_uri(reference))
        if not named:
            raise RegistryError(
                f"'{reference}' is not a registered version; valid forms are NAME, NAME@ALIAS, NAME/VERSION"
            )
        with translated_errors(reference):
            return self._resolve(**named.groupdict())

    def find_by_fingerprint(self, name: str, fingerprint: str) -> ModelVersion | None:
        """Return the version with a given fingerprint, if any."""
        condition = f"name = '{name}' and tags.`{FINGERPRINT_TAG}` = '{fingerprint}'"
        with translated_errors():
            found = self.client.search_model_versions(condition)
            return _version(found[0]) if found else None

    def champion(self, name: str) -> ModelVersion | None:
        """Return a model's champion, if it exists."""
        with translated_errors():
            model = self._registered(name)
            number = model.aliases.get("champion") if model else None
            found = self._present(name, number) if number else None
            return _version(found) if found else None

    def champions(self) -> tuple[ModelVersion, ...]:
        """Return all champions that talud registered and nobody deleted, by name."""
        with translated_errors():
            models = _all(self.client.search_registered_models)
            named = [(model.name, model.aliases.get("champion")) for model in models]
            found = [self._present(name, number) for name, number in sorted(named) if number]
        return tuple(_version(each) for each in found if each and FINGERPRINT_TAG in each.tags)

    def versions(self) -> tuple[ModelVersion, ...]:
        """Return all versions that talud registered, by name, newest first."""
        with translated_errors():
            models = _all(self.client.search_registered_models)
            found = _all(self.client.search_model_versions)
        aliases = {model.name: model.aliases for model in models}  # versions in a search result lack them
        registered = [_version(each, aliases.get(each.name, {})) for each in found if FINGERPRINT_TAG in each.tags]
        return tuple(sorted(registered, key=lambda version: (version.name, -int(version.version))))

    def find_by_weights(self, weights: str) -> dict[str, str]:
        """Return the registered versions of a network: URI → aliases.

        Args:
            weights: SHA-256 of the network's constants in hex; any other text gives no versions.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", weights):
            return {}
        with translated_errors():
            found = self.client.search_model_versions(f"tags.`weights` = '{weights}'")
            aliases = {each.name: self.client.get_registered_model(each.name).aliases for each in found}
        versions = [_version(each, aliases[each.name]) for each in found]
        versions.sort(key=lambda version: (version.name, int(version.version)))
        return {version.uri: ", ".join(version.aliases) for version in versions}

    def broken_aliases(self) -> tuple[BrokenAlias, ...]:
        """Return the aliases that point to deleted versions."""
        with translated_errors():
            models = _all(self.client.search_registered_models)
            present = {(each.name, str(each.version)) for each in _all(self.client.search_model_versions)}
        named = [(model.name, alias, str(number)) for model in models for alias, number in model.aliases.items()]
        broken = (one for one in sorted(named) if one[1] in ALIASES and (one[0], one[2]) not in present)
        return tuple(BrokenAlias(*one) for one in broken)

    def register(self, name: str, model: onnx.ModelProto, run_id: str, fingerprint: str) -> ModelVersion:
        """Register an ONNX model as a version.

        The model is logged to a run.

        The registered model is created if it does not exist.

        Args:
            name: name of the registered model.
            model: model with its weights inside.
            run_id: id of the trial's run, whose scores become the model's.
            fingerprint: value by which `find_by_fingerprint` identifies the model.
        """
        tags = {FINGERPRINT_TAG: fingerprint, REGISTERED_BY_TAG: current_user()}
        with translated_errors():
            if self._registered(name) is None:
                self.client.create_registered_model(name)
            model_id = files.log_model(self.client, name, model, run_id)
            with default_store(self.client):
                made = self.client.create_model_version(name, f"models:/{model_id}", run_id, tags, model_id=model_id)
            return _version(made)

    def upload_missing_files(self, version: ModelVersion, model: onnx.ModelProto) -> None:
        """Upload a version's files if some are missing."""
        with translated_errors(version.uri):
            files.upload_missing_files(self.client, self._model_id(version), model, version.run_id)

    def add_file(self, version: ModelVersion, path: Path, name: str) -> None:
        """Store a file next to a version's model."""
        with translated_errors(version.uri):
            files.add_file(self.client, self._model_id(version), path, name)

    def describe(self, version: ModelVersion, tags: Mapping[str, str], description: str | None = None) -> None:
        """Set tags and description of a version.

        Args:
            version: version to change.
            tags: tags to set.
            description: description in Markdown; None keeps the present one.
        """
        with translated_errors():
            for key, value in tags.items():
                if version.tags.get(key) != value:
                    self.client.set_model_version_tag(version.name, version.version, key, value)
            if description is not None:
                self.client.update_model_version(version.name, version.version, description)

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        """Point one of the `ALIASES` to a version.

        The version loses its other alias. Aliases of the model that point to deleted versions are deleted.
        """
        with translated_errors():
            model = self.client.get_registered_model(version.name)
            if str(model.aliases.get(alias)) != version.version:
                self.client.set_registered_model_alias(version.name, alias, version.version)
            for other in ALIASES:
                number = model.aliases.get(other)
                if other == alias or number is None:
                    continue
                if str(number) == version.version or self._present(version.name, number) is None:
                    self.client.delete_registered_model_alias(version.name, other)

    def promote(self, version: ModelVersion, *, by_hand: bool = False) -> None:
        """Make a version the champion.

        Its tags record the user, the time and the previous champion.

        Args:
            version: version that is not the champion.
            by_hand: true if a user chose it; the previous champion is then set aside.
        """
        before, now = self.champion(version.name), utc_text(datetime.now(UTC))
        self._unlink(version)
        self.describe(
            version,
            {PROMOTED_BY_TAG: current_user(), PROMOTED_AT_TAG: now}
            | ({REPLACED_TAG: before.version} if before else {}),
        )
        self._delete_tags(version, *([] if before else [REPLACED_TAG]), SET_ASIDE_TAG)
        self.set_alias(version, "champion")
        if before and by_hand:
            self.describe(before, {SET_ASIDE_TAG: f"by {current_user()} at {now}, for version {version.version}"})

    def roll_back(self, name: str) -> tuple[ModelVersion, ModelVersion]:
        """Make the previous champion the champion again.

        Its tags record the user and the time. The replaced version is set aside and removed from the promotion history,
        so no later rollback returns to it.

        Returns:
            The new champion and the version that it replaces.

        Raises:
            RegistryError: There is no champion, or no previous one, or that version was deleted.
        """
        present = self.look_up(f"{name}@champion")
        number = present.tags.get(REPLACED_TAG)
        if number is None:
            raise RegistryError(
                f"{name}: its champion, version {present.version}, has no previous champion to roll back to; choose a "
                f"version with talud models list and run talud models promote {name} VERSION"
            )
        former, now = self.look_up(f"{name}/{number}"), utc_text(datetime.now(UTC))
        self.describe(former, {PROMOTED_BY_TAG: current_user(), PROMOTED_AT_TAG: now})
        self._delete_tags(former, SET_ASIDE_TAG)
        self.set_alias(former, "champion")
        self.describe(present, {SET_ASIDE_TAG: f"by {current_user()} at {now}, rolled back to version {number}"})
        self._unlink(present)
        self._delete_tags(present, REPLACED_TAG)
        return former, present

    def _unlink(self, version: ModelVersion) -> None:
        """Remove a version from the promotion history."""
        before = version.tags.get(REPLACED_TAG)
        for other in self.versions():
            if other.name == version.name and other.tags.get(REPLACED_TAG) == version.version:
                if before is None or before == other.version:
                    self._delete_tags(other, REPLACED_TAG)
                else:
                    self.describe(other, {REPLACED_TAG: before})

    def _delete_tags(self, version: ModelVersion, *tags: str) -> None:
        with translated_errors():
            for tag in tags:
                if tag in version.tags:
                    self.client.delete_model_version_tag(version.name, version.version, tag)

    def _model_id(self, version: ModelVersion) -> str:
        """Return the id of the logged model of a version."""
        source = self.client.get_model_version(version.name, version.version).source
        return str(source).removeprefix("models:/")

    def _registered(self, name: str) -> RegisteredModel | None:
        try:
            return self.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _present(self, name: str, number: Any) -> MlflowVersion | None:
        """Return a version unless it was deleted."""
        try:
            return self.client.get_model_version(name, str(number))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _resolve(self, name: str, alias: str | None, version: str | None) -> ModelVersion:
        model = self._registered(name)
        if model is None:
            names = [found.name for found in self.client.search_registered_models()]
            raise RegistryError(f"no registered model '{name}'; registered models: {', '.join(names) or 'none'}")
        if alias is not None and alias not in model.aliases:
            known = ", ".join(f"{known} (version {number})" for known, number in sorted(model.aliases.items()))
            raise RegistryError(f"'{name}' has no alias '{alias}'; it has: {known or 'none'}")
        versions = {str(found.version): found for found in self.client.search_model_versions(f"name = '{name}'")}
        number = model.aliases[alias] if alias else version
        if number == "latest":
            number = max(versions, key=int, default=number)
        if alias and str(number) not in versions:
            raise RegistryError(BrokenAlias(name, alias, str(number)).message)
        if str(number) not in versions:
            known = ", ".join(sorted(versions, key=int))
            raise RegistryError(f"'{name}' has no version {number}; it has: {known or 'none'}")
        return _version(versions[str(number)], model.aliases)


def _all(search: Callable[..., PagedList[Any]]) -> list[Any]:
    """Return the results of a search from all pages."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _version(found: MlflowVersion, aliases: Mapping[str, Any] | None = None) -> ModelVersion:
    """Convert a version of MLflow.

    Args:
        found: the version.
        aliases: alias → version of the registered model, if `found` does not list its own.
    """
    created = utc_text(datetime.fromtimestamp(found.creation_timestamp / 1000, UTC))
    number = str(found.version)
    own_aliases = found.aliases if aliases is None else [alias for alias, at in aliases.items() if str(at) == number]
    return ModelVersion(found.name, number, found.run_id or "", dict(found.tags), created, tuple(sorted(own_aliases)))
