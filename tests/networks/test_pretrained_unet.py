"""Tests of the U-Net with an EfficientNet-Lite0 encoder."""

from __future__ import annotations

from math import ceil

import keras
import numpy as np
import pytest

from talud.networks import encoders
from talud.networks.catalogue import build_network, read_network
from talud.params.networks import PretrainedEncoder

# Parameters of Google's release (README of models/official/efficientnet/lite: 4.7 million; counted in its checkpoint),
# less those of the head: a convolution to 1280 channels with its normalisation, and the classifier of 1000 classes.
ENCODER_PARAMETERS = 4_652_008 - (320 * 1280 + 2 * 1280) - (1280 * 1000 + 1000)


def build(
    stages: str, bands: int = 3, filters: int = 2, normalised: bool = True, seed: int = 1, **options: str
) -> keras.Model:
    spec = read_network("pretrained_unet", {"stages": stages, "filters": filters, "weights": "none", **options}, "test")
    scale = np.zeros(bands, np.float32), np.ones(bands, np.float32)
    return build_network(spec, *scale, seed, batch_normalisation=normalised)


def count_parameters(model: keras.Model, *prefixes: str) -> int:
    chosen = [layer for layer in model.layers if layer.name.startswith(prefixes)]
    return sum(int(np.prod(weight.shape)) for layer in chosen for weight in layer.trainable_weights)


def test_encoder_has_the_published_number_of_parameters() -> None:
    assert count_parameters(build("all"), "stem", "block_") == ENCODER_PARAMETERS


def test_cut_encoder_lacks_the_stages_of_192_and_320() -> None:
    def inverted_residual(entering: int, side: int, leaving: int) -> int:
        inner = 6 * entering
        return inner * (entering + side * side + leaving) + 2 * (2 * inner + leaving)

    coarse = inverted_residual(112, 5, 192) + 3 * inverted_residual(192, 5, 192) + inverted_residual(192, 3, 320)
    assert count_parameters(build("1/16"), "stem", "block_") == ENCODER_PARAMETERS - coarse


@pytest.mark.parametrize(("stages", "alignment"), [("1/16", 16), ("all", 32)])
def test_pretrained_unet_maps_any_aligned_size_and_bands(stages: str, alignment: int) -> None:
    model = build(stages, bands=5)
    stack = np.random.default_rng(1).normal(size=(2, alignment, 3 * alignment, 5)).astype(np.float32)
    stack[0, :4, :, 2] = np.nan
    probability = np.asarray(model(stack))
    assert probability.shape == (2, alignment, 3 * alignment, 1)
    assert np.isfinite(probability).all()
    assert probability.std() > 0.01
    assert (model.layers[0].name, model.layers[1].name, model.layers[-1].name) == ("stack", "scaling", "probability")


LITE0 = "efficientnet_lite0"


@pytest.mark.parametrize(
    ("encoder", "stages", "halo", "alignment"),
    [
        (LITE0, "1/16", 208, 16),
        (LITE0, "all", 512, 32),
        ("mobilenet_v2", "1/16", 176, 16),
        ("mobilenet_v2", "all", 320, 32),
        ("resnet50", "1/16", 192, 16),
        ("resnet50", "all", 320, 32),
    ],
)
def test_influence_of_a_pixel_ends_at_the_documented_halo(
    encoder: PretrainedEncoder, stages: str, halo: int, alignment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Change one pixel of a black strip at each place of the lattice, with weights that let nothing pass unseen."""
    narrow = tuple(stage._replace(filters=1) for stage in encoders.STAGES[encoder])
    monkeypatch.setitem(encoders.STAGES, encoder, narrow)  # type: ignore[misc]
    monkeypatch.setitem(encoders.STEM_FILTERS, encoder, 1)  # type: ignore[misc]
    model = build(stages, bands=1, filters=1, normalised=False, encoder=encoder)
    for layer in model.layers[2:]:
        layer.set_weights([np.full_like(values, values.ndim > 1) for values in layer.get_weights()])
    features = keras.Model(model.inputs[0], model.layers[-1].input)
    margin = 0
    places = range(halo, halo + alignment)
    strips = np.zeros((alignment, 2 * halo + alignment, alignment, 1), np.float32)
    strips[range(alignment), places, alignment // 2] = 1
    for place, reached in zip(places, np.asarray(features(strips)).any(axis=(2, 3)), strict=True):
        rows = np.flatnonzero(reached)
        # The core of the farthest row begins and ends on the lattice.
        start = rows[-1] // alignment * alignment
        stop = ceil((rows[0] + 1) / alignment) * alignment
        margin = max(margin, start - place, place + 1 - stop)
    assert halo - alignment < margin <= halo


def test_weights_depend_on_the_seed_alone() -> None:
    first, other = build("1/16"), build("1/16", seed=2)
    keras.utils.set_random_seed(7)
    again = build("1/16")
    for mine, its in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)
    kernels = [layer for layer in first.layers if layer.name.endswith(("expand", "depthwise", "project"))]
    for layer in kernels:
        assert not np.array_equal(layer.get_weights()[0], other.get_layer(layer.name).get_weights()[0])
        standardised = layer.get_weights()[0] * np.sqrt(np.prod(layer.kernel.shape[:2]) * _fan(layer))
        assert 0.8 < standardised.std() < 1.7  # 1 before no activation, the square root of 2 before a ReLU
    assert len({layer.get_weights()[0].ravel()[0] for layer in kernels}) == len(kernels)


def _fan(layer: keras.Layer) -> int:
    """Return the number of channels that an output of a convolution reads."""
    return 1 if isinstance(layer, keras.layers.DepthwiseConv2D) else int(layer.kernel.shape[2])
