"""Tests of what all networks of the catalogue have in common."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from talud.errors import ModelError
from talud.networks.catalogue import NAMES, NetworkSpec, build_network, read_network
from talud.training.calibration import PlattScaling, apply_to_last_layer, compute_logits

BANDS = 4
MEAN, DEVIATION = np.array([50, 60, 70, 3], np.float32), np.array([9, 5, 7, 2], np.float32)
# Networks with which options of every network are tested; the tests of the plain U-Net have their own.
VARIED = ("pretrained_unet", "multiscale_unet")
SIDE = 32  # multiple of the alignment of every network below
# Small options of each network.
OPTIONS: dict[str, dict[str, Any]] = {
    "unet": {"filters": 3, "depth": 2},
    "pretrained_unet": {"filters": 2},
    "resunet": {"filters": 3, "depth": 2},
    "attention_unet": {"filters": 3, "depth": 2},
    "multiscale_unet": {"filters": 3, "depth": 2},
    "fusion_unet": {"filters": 3, "depth": 2, "band_filters": 2},
    "dual_encoder": {"groups": [{"bands": 2}, {"bands": 1}, {"bands": 1, "pixels": 2}], "filters": 2, "depth": 3},
}


def small(name: str) -> NetworkSpec:
    return read_network(name, OPTIONS[name], "test")


def random_stack() -> np.ndarray:
    stack = np.random.default_rng(1).normal(MEAN, DEVIATION, (2, SIDE, SIDE, BANDS)).astype(np.float32)
    stack[0, 3:9, 4:7] = np.nan
    return stack


def test_every_network_has_small_options_here() -> None:
    assert set(OPTIONS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_network_is_read_back_from_contract_fields(name: str) -> None:
    spec = small(name)
    fields = json.loads(json.dumps(spec.fields))
    assert read_network(spec.name, fields, "test") == spec
    assert set(fields) >= set(OPTIONS[name])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {}, "model.onnx: the network 'resnet' is unknown to this talud, which has unet, pretrained_unet"),
        ("unet", {"filters": 3, "dept": 2}, "unknown key 'dept'; did you mean 'depth'?"),
        ("unet", {"depth": 2}, "the key 'filters' is missing"),
        ("pretrained_unet", {"stages": "1/8"}, "'pretrained_unet': stages: Input should be '1/16' or 'all'"),
        ("dual_encoder", {"groups": []}, "'dual_encoder': groups: Tuple should have at least 1 item"),
        ("pretrained_unet", {"filters": 0}, "filters: Input should be greater than or equal to 1"),
    ],
)
def test_unknown_network_or_option_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_network(name, options, "model.onnx")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": [{"bands": 3}]}, "the groups have 3 bands, but the stack has 4"),
        ({"groups": [{"bands": 4, "pixels": 2}]}, "no group has the pixels of the stack; set pixels to 1"),
        (
            {"groups": [{"bands": 4, "encoder": "efficientnet_lite0"}], "depth": 3},
            "group 0 has the encoder efficientnet_lite0, which needs depth 4",
        ),
    ],
)
def test_groups_that_do_not_fit_the_stack_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_network(read_network("dual_encoder", options, "test"), MEAN, DEVIATION, 1)
    assert message in str(caught.value)


def test_dual_encoder_joins_lite0_with_a_plain_encoder() -> None:
    groups = [{"bands": 3, "encoder": "efficientnet_lite0"}, {"bands": 1, "pixels": 4}]
    spec = read_network("dual_encoder", {"groups": groups, "filters": 2}, "test")
    model = build_network(spec, MEAN, DEVIATION, 1)
    stack = random_stack()
    expected = np.asarray(model(stack))
    assert expected.shape == (2, SIDE, SIDE, 1)
    # The last band is averaged over 4 × 4 pixels, so their order within them does not matter, unlike that of others.
    for band, matters in ((3, False), (0, True)):
        mixed = stack.copy()
        mixed[:, 12:16, 12:16, band] = mixed[:, 15:11:-1, 12:16, band]
        assert np.allclose(model(mixed), expected, atol=1e-6) is not matters


def test_optical_group_of_dual_encoder_starts_from_imagenet() -> None:
    pretrained, random = (
        build_network(
            read_network(
                "dual_encoder",
                {"groups": [{"bands": 3, "encoder": "efficientnet_lite0", **rgb}, {"bands": 1}], "filters": 2},
                "test",
            ),
            MEAN,
            DEVIATION,
            1,
        )
        for rgb in ({"rgb": [2, 0, 1]}, {})
    )
    alone = build_network(read_network("pretrained_unet", {"filters": 2}, "test"), MEAN[:3], DEVIATION[:3], 1)
    kernel, bias = alone.get_layer("stem").get_weights()
    found = pretrained.get_layer("group_0_stem").get_weights()
    np.testing.assert_array_equal(found[0][:, :, [2, 0, 1]], kernel)
    np.testing.assert_array_equal(found[1], bias)
    for name in ("block_0_depthwise", "block_10_project"):
        expected = alone.get_layer(name).get_weights()[0]
        np.testing.assert_array_equal(pretrained.get_layer(f"group_0_{name}").get_weights()[0], expected)
        assert not np.array_equal(random.get_layer(f"group_0_{name}").get_weights()[0], expected)


@pytest.mark.parametrize("name", VARIED)
def test_last_layer_of_a_network_can_be_calibrated(name: str) -> None:
    model = build_network(small(name), MEAN, DEVIATION, 1)
    stack = np.moveaxis(random_stack()[1], -1, 0)
    logits = compute_logits(model, stack, SIDE)
    scaling = PlattScaling(0.5, -0.25)
    apply_to_last_layer(model, scaling)
    probability = np.asarray(model(random_stack()))[1, ..., 0]
    np.testing.assert_allclose(probability, scaling.probability(logits), atol=1e-5)


@pytest.mark.parametrize("name", VARIED)
def test_rematerialised_network_has_same_weights_and_gradients(name: str) -> None:
    import tensorflow as tf

    plain, again = (build_network(small(name), MEAN, DEVIATION, 1, rematerialise=option) for option in (False, True))
    assert [weight.path for weight in plain.weights] == [weight.path for weight in again.weights]
    stack = random_stack()
    gradients = []
    for model in (plain, again):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(stack, training=True) ** 2)
        gradients.append(tape.gradient(loss, [weight.value for weight in model.trainable_weights]))
    for first, second in zip(*gradients, strict=True):
        assert np.any(first)
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", VARIED)
def test_mixed_precision_network_is_near_its_float32_twin(name: str) -> None:
    plain, mixed = (build_network(small(name), MEAN, DEVIATION, 1, mixed_precision=one) for one in (False, "float16"))
    probability = np.asarray(mixed(random_stack()))
    assert probability.dtype == np.float32
    assert {weight.dtype for weight in mixed.weights} == {"float32"}
    np.testing.assert_allclose(probability, plain(random_stack()), atol=0.02)
    assert not np.array_equal(probability, plain(random_stack()))
