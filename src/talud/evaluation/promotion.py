"""Registering a trained model, and deciding whether it takes the champion's place.

The model and the champion are scored again on the same pixels as they are now, those that both map: the validation
blocks of the training areas, and every gate area as a whole. The model is promoted where it is worse on none of them
and better on one. The validation blocks are kinder to the new model, whose epoch, trial and threshold were chosen on
them; gate areas chose nothing, so that a team that has the labels should name one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np

from talud import registry
from talud.contract import Contract, Reduced, variant_path
from talud.errors import MismatchError, ModelError, RegistryError
from talud.evaluation.comparison import compare_blocks, compare_maps
from talud.evaluation.restoration import run_of
from talud.evaluation.results import ScoreTable
from talud.files import replacing
from talud.inference.reader import open_stack
from talud.inference.runtime import Model, Origin
from talud.project import Project

VALIDATION = "validation blocks"
CHOICE = ("filters", "learning_rate", "batch_size", "epochs")  # the hyperparameters that a description names
REASON, COMPARED = "alias_reason", "alias_f1"  # tags of a version: why it has its alias


@dataclass(frozen=True)
class Registration:
    """What registering a model came to.

    Attributes:
        name: of the registered model.
        version: that holds the model.
        alias: `champion` or `challenger`.
        reason: of the alias, in words.
        f1: the model's F1 and the champion's on each set of pixels that decided, as {"model": …, "champion": …};
            empty where there was no champion to compare with.
        run_id: the MLflow run of the trial.
        variants: the reduced precisions in which the version holds the model too.
    """

    name: str
    version: str
    alias: str
    reason: str
    f1: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    run_id: str = ""
    variants: tuple[str, ...] = ()


def register(project: Project, band_set: str) -> Registration:
    """Register a band set's model, unless the same model is registered already, and give it its alias.

    Two models are the same if weights, training data, and everything else that their contracts say is equal, but for
    run, commit and scores. Variants of reduced precision that lie beside the model and belong to it go into the same
    version, also into one that was registered without them. The alias moves last, after the registered version has
    been fetched and opened. Writes what it came to to `registered/BAND_SET.json`.

    Raises:
        ParamsError: no such band set.
        ModelError: its model is missing, or is not one that talud can run.
        RegistryError: the store cannot be used, or what it gives back is not what was registered.
        SourceError: there is a champion, and a stack or mask to compare on is missing.
    """
    project.params.band_set(band_set)
    path = project.model(band_set)
    if not path.is_file():
        raise ModelError(f"{path}: not found; run talud train {band_set} first")
    model = Model.load(path)
    if model.contract.name != band_set:
        raise ModelError(f"{path}: its contract says '{model.contract.name}', not '{band_set}'; train it again")
    registry.connect(project.root, create=True)
    version = _version(project, model)
    registered = _open(version, project)
    _check_same(model, registered)
    variants = _variants(project, version, model)
    _describe(project, version, model.contract, variants)
    registration = _promote(project, version, registered, tuple(variant.precision for variant in variants))
    with replacing(project.registration(band_set)) as scratch:
        scratch.write_text(json.dumps(asdict(registration), indent=2) + "\n", encoding="utf-8")
    return registration


def registered_name(band_set: str) -> str:
    """The name of a band set's registered model."""
    return f"{registry.EXPERIMENT}-{band_set}"


def fingerprint(contract: Contract) -> str:
    """SHA-256 of all that a contract states but run, commit and scores: weights, data, threshold, histograms …"""
    content = contract.model_dump_json(exclude={"run_id", "commit", "scores"})
    return hashlib.sha256(content.encode()).hexdigest()


def _version(project: Project, model: Model) -> registry.Version:
    """The version that holds the model, made where there is none; files that the store has lost are put back."""
    import onnx

    contract = model.contract
    name, key = registered_name(contract.name), fingerprint(contract)
    version = registry.find(name, key)
    if version is None:
        version = registry.register(name, onnx.load(model.path), run_of(project, contract), key)
    else:
        registry.put_back(version, onnx.load(model.path))
    return version


def _variants(project: Project, version: registry.Version, model: Model) -> list[Contract]:
    """The contracts of the variants that the version holds, once those that lie beside the model are among them.

    Raises:
        RegistryError: the store gives back something else than was put there.
    """
    found = []
    for precision in get_args(Reduced):
        ours = variant_path(model.path, precision)
        theirs = variant_path(registry.fetch(version.uri, project.root).path, precision)
        if ours.is_file() and _belongs(ours, model.contract):
            if not theirs.is_file() or theirs.read_bytes() != ours.read_bytes():
                registry.add_file(version, ours, theirs.name)
                theirs = variant_path(registry.fetch(version.uri, project.root).path, precision)
            if theirs.read_bytes() != ours.read_bytes():
                raise RegistryError(f"{theirs}: is not the file that was registered, {ours}; is the store sound?")
        if theirs.is_file():
            found.append(Model.load(theirs).contract)
    return found


def _belongs(path: Path, contract: Contract) -> bool:
    """Whether a file is a variant of a model.

    Raises:
        ModelError: it is, but does not say what it loses.
    """
    variant = Model.load(path).contract
    belongs = variant.is_variant_of(contract)
    if belongs and not {"f1", "mean_difference"} <= variant.loss.keys():
        raise ModelError(f"{path}: does not say what it loses against the model; make it again with talud quantize")
    return belongs


def _describe(project: Project, version: registry.Version, contract: Contract, variants: Sequence[Contract]) -> None:
    """Give the version the tags and the description that it should have now."""
    scores = _scores(project, contract)
    tags = {f"f1_{place.replace(' ', '_')}": f"{score['f1']:.4f}" for place, score in scores.items()} | {
        "band_set": contract.name,
        "data_version": contract.data_version,
        "commit": contract.commit,
        "weights": contract.weights,
        "threshold": f"{contract.threshold:g}",
    }
    tags |= {f"{variant.precision}_f1_loss": f"{variant.loss['f1']:.4f}" for variant in variants}
    registry.describe(version, tags, _description(contract, scores, variants))


def _scores(project: Project, contract: Contract) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 by place: those of training, and those of evaluation where it has been done."""
    scores = {"validation": dict(contract.scores)}
    if project.scores(contract.name).is_file():
        table = ScoreTable.read(project.scores(contract.name))
        scores["test"] = table.test_tally.confusion.scores()
        scores |= {area: found.tally.confusion.scores() for area, found in table.areas.items()}
    return scores


def _description(contract: Contract, scores: Mapping[str, Mapping[str, float]], variants: Sequence[Contract]) -> str:
    choice = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in contract.hyperparameters.items() if name in CHOICE
    )
    rows = [
        f"| {place} | {score['f1']:.3f} | {score['precision']:.3f} | {score['recall']:.3f} |"
        for place, score in scores.items()
    ]
    losses = [
        f"The {variant.precision} variant loses {variant.loss['f1']:.4f} of the F1 on the validation blocks; its "
        f"probabilities differ by {variant.loss['mean_difference']:.2g} in the mean."
        for variant in variants
    ]
    return "\n".join(
        [
            f"U-Net over {', '.join(contract.band_names)} at {contract.pixel_size:g} m, "
            f"trained on {', '.join(contract.areas)} ({choice}). Landslide where the probability is at least "
            f"{contract.threshold:g}.",
            "",
            "| pixels | F1 | precision | recall |",
            "| --- | --- | --- | --- |",
            *rows,
            *(["", *losses] if losses else []),
        ]
    )


def _open(version: registry.Version, project: Project) -> Model:
    """The registered model, fetched as anybody would fetch it."""
    fetched = registry.fetch(version.uri, project.root)
    return Model.load(fetched.path, Origin(fetched.name, fetched.version))


def _check_same(model: Model, registered: Model) -> None:
    """That the registered model is the one that was to be registered, by what it says and by what it computes.

    Raises:
        RegistryError: it is not.
    """
    cell = 2 * model.contract.alignment
    noise = np.random.default_rng(0).standard_normal((len(model.contract.bands), cell, cell), np.float32)
    bands = model.contract.bands
    scale = np.array([[band.mean, band.deviation] for band in bands], np.float32)[:, :, np.newaxis, np.newaxis]
    stack = scale[:, 0] + noise * scale[:, 1]
    same = fingerprint(model.contract) == fingerprint(registered.contract)
    if not (same and np.array_equal(model.run(stack), registered.run(stack))):
        raise RegistryError(
            f"{registered.path}: the registered model is not that of {model.path}; no alias was moved; delete the "
            f"version {registered.version} of {registered.name} and register again"
        )


def _promote(project: Project, version: registry.Version, model: Model, variants: tuple[str, ...]) -> Registration:
    """Compare with the champion, and move the alias."""
    champion = registry.champion(version.name)
    f1: dict[str, dict[str, float]] = {}
    if champion is None:
        alias, reason = "champion", f"the first version of {version.name}"
    elif champion.version == version.version:
        alias, reason, f1 = "champion", version.tags.get(REASON, "the champion already"), _compared(version)
    else:
        alias, reason, f1 = _challenge(project, model, champion)
    registry.describe(version, {REASON: reason} | ({COMPARED: json.dumps(f1)} if f1 else {}))
    registry.set_alias(version, alias)
    return Registration(version.name, version.version, alias, reason, f1, version.run_id, variants)


def _challenge(
    project: Project, model: Model, champion: registry.Version
) -> tuple[str, str, dict[str, dict[str, float]]]:
    """The alias that a model deserves beside the champion, why, and the F1 of both."""
    named = f"the champion, version {champion.version}"
    try:
        present = _open(champion, project)
        for area in (*project.params.areas_of("training"), *project.params.areas_of("gate")):
            with open_stack(project.stack(area), present.contract):
                pass
    except (MismatchError, ModelError) as error:
        return "champion", f"{named}, cannot be run on the present stacks: {error}", {}
    f1 = _f1(project, model, present)
    worse = [place for place, pair in f1.items() if pair["model"] < pair["champion"]]
    better = [place for place, pair in f1.items() if pair["model"] > pair["champion"]]
    deciding = worse or better or list(f1)
    numbers = ", ".join(
        f"F1 {f1[place]['model']:.3f} against {f1[place]['champion']:.3f} on {place}" for place in deciding
    )
    if worse or not better:
        return "challenger", f"{'worse than' if worse else 'no better than'} {named}: {numbers}", f1
    return "champion", f"better than {named}: {numbers}", f1


def _f1(project: Project, model: Model, champion: Model) -> dict[str, dict[str, float]]:
    """F1 of both on each set of pixels that decides, to six decimals."""
    training, gates = project.params.areas_of("training"), project.params.areas_of("gate")
    both = (model, champion)
    counts = {VALIDATION: compare_blocks(both, project, training, "validation")}
    counts |= {area: compare_maps(both, project, area) for area in gates}
    return {
        place: {"model": round(ours.f1, 6), "champion": round(theirs.f1, 6)} for place, (ours, theirs) in counts.items()
    }


def _compared(version: registry.Version) -> dict[str, dict[str, float]]:
    """The F1 values by which a version became champion."""
    found: dict[str, dict[str, float]] = json.loads(version.tags.get(COMPARED, "{}"))
    return found
