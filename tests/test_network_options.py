"""Tests of networks in params.yaml: names, settings, and options derived from the bands."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from talud.bands import band_named
from talud.errors import ParamsError
from talud.params import Params, TrainingOptions
from talud.params.networks import (
    NETWORK_OPTIONS,
    BandGroup,
    DualEncoderOptions,
    NetworkName,
    PretrainedUnetOptions,
)
from talud.project import Project
from talud.training.checkpoint import trial_key
from talud.training.search import Hyperparameters, find_search, hyperparameter_sets, recorded_hyperparameters
from talud.versions import VERSIONS

RGB = ("red", "green", "blue")
SEVEN = (*RGB, "slope", "curvature", "vv_pre", "vv_post")
SEARCH = {"filters": [8], "learning_rate": [0.002, 0.001], "batch_size": [8], "epochs": 3}
PARAMS: dict[str, Any] = {
    "seed": 7,
    "areas": {"basin": {"role": "training", "folder": "data/basin"}},
    "band_sets": {"7band": list(SEVEN)},
    "stack": {},
    "split": {},
    "training": {},
    "search": "one",
    "searches": {"one": SEARCH},
}
ROOT = Path(__file__).parents[1]


def params_with(**changes: object) -> Params:
    return Params.model_validate({**PARAMS, **changes})


def dual_encoder(bands: tuple[str, ...], depth: int = 4, **settings: object) -> DualEncoderOptions:
    training = TrainingOptions.model_validate({"depth": depth, "networks": {"dual_encoder": settings}})
    options = training.network_options("dual_encoder", 8, bands)
    assert isinstance(options, DualEncoderOptions)
    return options


@given(st.permutations(SEVEN), st.integers(1, 7))
def test_options_follow_the_order_of_any_band_set(order: list[str], count: int) -> None:
    bands = tuple(order[:count])
    training = TrainingOptions()
    pretrained = training.network_options("pretrained_unet", 8, bands)
    assert isinstance(pretrained, PretrainedUnetOptions)
    complete = set(RGB) <= set(bands)
    assert pretrained.weights == ("imagenet" if complete else "none")
    assert ("need red" in training.networks.lost_weights("pretrained_unet", pretrained, bands)) is not complete
    if complete:
        assert [bands[index] for index in pretrained.rgb] == list(RGB)
    rest = list(bands)
    groups = dual_encoder(bands).groups
    for group in groups:
        run, rest = rest[: group.bands], rest[group.bands :]
        assert len({band_named(name).group for name in run}) == 1
        assert (group.encoder == "efficientnet_lite0") == (set(RGB) <= set(run))
    assert rest == []


def test_band_groups_have_the_settings_of_their_group() -> None:
    lite0, plain = {"bands": 3, "encoder": "efficientnet_lite0", "rgb": [0, 1, 2]}, {"bands": 2}
    for options, expected in (
        (dual_encoder(SEVEN, pixels={"sar": 2}), (lite0, plain, {**plain, "pixels": 2})),
        (dual_encoder(SEVEN, optical="plain"), ({"bands": 3}, plain, plain)),
        (dual_encoder(SEVEN, depth=3), ({"bands": 3}, plain, plain)),  # lite0 halves the scale four times
        (dual_encoder(("vv_pre", "vv_post"), pixels={"sar": 4}), (plain,)),  # no finer group
        (dual_encoder(("slope", *RGB, "vv_pre")), ({"bands": 1}, lite0, {"bands": 1})),
        (dual_encoder(("nir", "blue", "green", "red")), ({**lite0, "bands": 4, "rgb": [3, 2, 1]},)),
    ):
        assert options.groups == tuple(BandGroup.model_validate(group) for group in expected)


@pytest.mark.parametrize(
    ("bands", "depth", "settings", "weights", "reason"),
    [
        (SEVEN, 4, {}, "imagenet", ""),
        (SEVEN, 3, {}, "none", "needs training.depth 4 and red, green and blue in one group"),
        (("red", "green", "slope", "blue"), 4, {}, "none", "red, green and blue in one group"),
        (
            ("slope", "vv_pre"),
            4,
            {},
            "none",
            "its initial weights need red, green and blue, and the band",
        ),
        (SEVEN, 4, {"optical": "plain"}, "none", ""),  # as stated
        (SEVEN, 4, {"weights": "none"}, "none", ""),
    ],
)
def test_dual_encoder_without_initial_weights_says_why(
    bands: tuple[str, ...], depth: int, settings: dict[str, object], weights: str, reason: str
) -> None:
    options = dual_encoder(bands, depth, **settings)
    training = TrainingOptions.model_validate({"depth": depth, "networks": {"dual_encoder": settings}})
    assert options.weights == weights
    found = training.networks.lost_weights("dual_encoder", options, bands)
    assert reason in found
    assert bool(reason) == bool(found)


def test_networks_without_settings_have_depth_and_filters() -> None:
    training = TrainingOptions.model_validate({"depth": 3, "networks": {"fusion_unet": {"band_filters": 8}}})
    for name in NETWORK_OPTIONS:
        options = training.network_options(name, 5, SEVEN)
        assert options.filters == 5
        assert options.alignment == (16 if name == "pretrained_unet" else 8)
        assert getattr(options, "band_filters", 8) == 8
    every = TrainingOptions.model_validate({"networks": {"pretrained_unet": {"stages": "all"}}})
    assert every.network_options("pretrained_unet", 5, SEVEN).alignment == 32


@pytest.mark.parametrize(
    ("depth", "settings", "message"),
    [
        (2, {}, "the network dual_encoder cannot be built: depth: Input should be greater than or equal to 3"),
        (
            3,
            {"optical": "efficientnet_lite0"},
            "group 0 has the encoder efficientnet_lite0, which needs depth 4 and pixels 1",
        ),
    ],
)
def test_depth_unsuited_to_a_network_is_refused(depth: int, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        dual_encoder(SEVEN, depth, **settings)
    assert message in str(caught.value)
    assert "change training.depth, training.networks or the network" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"networks": {"resunet": {}}}}, "unknown key 'training.networks.resunet'"),
        (
            {"training": {"networks": {"pretrained_unet": {"rgb": [0, 1, 2]}}}},
            "unknown key 'training.networks.pretrained_unet.rgb' (allowed: encoder, stages, weights",
        ),
        ({"training": {"networks": {"dual_encoder": {"pixels": {"sar": 3}}}}}, "Input should be 1, 2 or 4"),
        ({"training": {"networks": {"dual_encoder": {"pixels": {"shade": 2}}}}}, "'shade' is not an input of networks"),
        (
            {"training": {"networks": {"dual_encoder": {"optical": "plain", "weights": "w.h5"}}}},
            "weights is 'w.h5', but no encoder reads it with optical: plain; remove one of them",
        ),
        ({"searches": {"one": {**SEARCH, "network": ["unet", "unet"]}}}, "network contains a value twice: unet, unet"),
        ({"searches": {"one": {**SEARCH, "network": ["vgg"]}}}, "Input should be 'unet', 'pretrained_unet'"),
    ],
)
def test_unknown_networks_and_settings_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**PARAMS, **changes}))
    with pytest.raises(ParamsError) as caught:
        Params.read(path)
    assert message in str(caught.value)


def test_each_network_is_combined_with_each_learning_rate() -> None:
    params = params_with(searches={"one": {**SEARCH, "network": ["unet", "resunet"]}})
    assert [one.name for one in hyperparameter_sets(find_search(params, "one"), 7)] == [
        "8 filters · lr 0.002 · batch 8",
        "8 filters · lr 0.001 · batch 8",
        "resunet · 8 filters · lr 0.002 · batch 8",
        "resunet · 8 filters · lr 0.001 · batch 8",
    ]


def test_study_of_the_publication_is_with_the_plain_unet() -> None:
    params = Params.read(ROOT / "params.yaml")
    trials = hyperparameter_sets(find_search(params, "study"), params.seed)
    assert len(trials) == 54
    assert {one.network for one in trials} == {"unet"}
    assert find_search(params, params.search).network == ("unet",)


def test_comparison_has_radar_alone_and_suitable_networks() -> None:
    params = Params.read(ROOT / "configs/comparison.yaml")
    assert params.band_set("sar") == ("vv_pre", "vh_pre", "vv_post", "vh_post")
    assert {name: list(bands) for name, bands in params.band_sets.items() if name != "sar"} == {
        name: list(bands) for name, bands in Params.read(ROOT / "params.yaml").band_sets.items()
    }
    for search in params.searches:
        for trial in hyperparameter_sets(find_search(params, search), params.seed):
            for bands in params.band_sets.values():
                options = params.training.network_options(trial.network, trial.filters, tuple(bands))
                assert params.split.patch % options.alignment == 0


def key_of(network: NetworkName, **networks: object) -> str:
    project = Project(Path("project"), params_with(training={"depth": 4, "networks": networks}))
    return trial_key(project, SEVEN, "data", Hyperparameters(8, 0.002, 8, 3, None, network=network))


def test_key_of_a_plain_unet_is_that_of_earlier_releases() -> None:
    params = params_with()
    augmentation = {"symmetries": True, "scale": 0, "gain": 0, "offset": 0, "gamma": 0, "haze": 0, "per_band": 0.6}
    content = {
        "bands": list(SEVEN),
        "data_version": "data",
        "split": params.split_hyperparameters,
        "training": {"depth": 4, "rematerialise": False, "mixed_precision": False, "xla": False},
        "recipe": {
            "augmentation": {name: value or 0.0 for name, value in augmentation.items()} | {"paste": 0.0},
            "loss": "dice",
            "schedule": "constant",
            "weight_decay": 0.0,
            "averaging": 0.0,
            "batch_normalisation": False,
            "dropping": {"groups": {}, "clouds": 0},
        },
        "choice": {
            "filters": 8,
            "learning_rate": 0.002,
            "batch_size": 8,
            "epochs": 3,
            "patience": None,
            "training_seed": None,
        },
        "versions": {part: VERSIONS[part] for part in ("data", "training")},
    }
    expected = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    assert key_of("unet") == key_of("unet", fusion_unet={"band_filters": 8}) == expected


def test_key_of_a_network_covers_its_own_settings_only() -> None:
    plain = key_of("fusion_unet")
    assert plain == key_of("fusion_unet", pretrained_unet={"stages": "all"})
    assert plain == key_of("fusion_unet", fusion_unet={"band_filters": 4})  # the default
    assert len({plain, key_of("resunet"), key_of("unet"), key_of("fusion_unet", fusion_unet={"band_filters": 8})}) == 4


def test_recorded_hyperparameters_describe_the_network() -> None:
    params = params_with(training={"networks": {"dual_encoder": {"pixels": {"sar": 2}}}})
    found = {
        name: recorded_hyperparameters(params, Hyperparameters(8, 0.002, 8, 3, None, network=name), SEVEN)
        for name in NETWORK_OPTIONS
    }
    assert [one["network"] for one in found.values()] == list(NETWORK_OPTIONS)
    assert found["unet"]["depth"] == 4
    assert not [name for name in found["unet"] if name.startswith("network_")]
    assert "depth" not in found["pretrained_unet"]
    assert (found["pretrained_unet"]["network_stages"], found["pretrained_unet"]["network_weights"]) == (
        "1/16",
        "imagenet",
    )
    assert json.loads(str(found["dual_encoder"]["network_groups"]))[2]["pixels"] == 2
