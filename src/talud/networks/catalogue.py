"""Catalogue of the networks that talud can train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray
from pydantic import JsonValue, ValidationError

from talud.errors import ModelError
from talud.networks import cited_unets, dual_encoder, pretrained_unet, unet
from talud.networks.blocks import Blocks
from talud.networks.locality import check_local
from talud.networks.rematerialisation import Rematerialised
from talud.networks.unet import Precision, Scaling
from talud.params.networks import NETWORK_OPTIONS, NetworkName, NetworkOptions
from talud.params.reading import validation_message

# Function that loads initial weights into a network with the given options, in place. The path of a file of weights is
# relative to the given folder.
WeightLoader = Callable[[keras.Model, Any, Path], None]
# Function from the scaled stack, options and layer factory to the features before the last layer.
FeatureBuilder = Callable[[Any, Any, Blocks], Any]


@dataclass(frozen=True)
class NetworkSpec:
    """Network with its options.

    Attributes:
        name: name of the network in the catalogue.
        options: its options, of the model that the catalogue has for the name.
    """

    name: NetworkName
    options: NetworkOptions

    @property
    def fields(self) -> dict[str, JsonValue]:
        """Options as they are stored in a contract."""
        return self.options.model_dump(mode="json", exclude_none=True)

    @property
    def with_random_weights(self) -> NetworkSpec:
        """Equal network that starts from random weights."""
        changes = {"weights": "none"} if hasattr(self.options, "weights") else {}
        return replace(self, options=self.options.model_copy(update=changes))


@dataclass(frozen=True)
class _Network:
    """Entry of the catalogue.

    Attributes:
        features: builder of the layers between scaling and probability.
        load_weights: function that loads initial weights; None for a network that has only random ones.
        pretrained_prefixes: function from the options to the starts of the names of the layers with loaded weights;
            None if there are none.
    """

    features: FeatureBuilder
    load_weights: WeightLoader | None = None
    pretrained_prefixes: Callable[[Any], tuple[str, ...]] | None = None


# The plain U-Net is not listed: it builds all of its layers itself.
_NETWORKS: Mapping[NetworkName, _Network] = {
    "pretrained_unet": _Network(
        pretrained_unet.build_features, pretrained_unet.load_weights, pretrained_unet.pretrained_prefixes
    ),
    "resunet": _Network(cited_unets.build_resunet),
    "attention_unet": _Network(cited_unets.build_attention_unet),
    "multiscale_unet": _Network(cited_unets.build_multiscale_unet),
    "fusion_unet": _Network(cited_unets.build_fusion_unet),
    "dual_encoder": _Network(dual_encoder.build_features, dual_encoder.load_weights, dual_encoder.pretrained_prefixes),
}
NAMES: tuple[NetworkName, ...] = tuple(NETWORK_OPTIONS)


def read_network(name: str, options: Mapping[str, JsonValue], origin: str) -> NetworkSpec:
    """Return a network from its name and options, as a contract has them.

    Args:
        name: name of the network.
        options: options by name; the others have their defaults.
        origin: name of the file that has them, for messages.

    Raises:
        ModelError: The name or an option is unknown, or an option has a wrong value.
    """
    known = next((one for one in NAMES if one == name), None)
    if known is None:
        raise ModelError(f"{origin}: the network '{name}' is unknown to this talud, which has {', '.join(NAMES)}")
    model = NETWORK_OPTIONS[known]
    try:
        return NetworkSpec(known, model.model_validate(dict(options)))
    except ValidationError as error:
        raise ModelError(f"{origin}: options of the network '{name}': {validation_message(error, model)}") from None


def build_network(
    spec: NetworkSpec,
    mean: NDArray[np.float32],
    deviation: NDArray[np.float32],
    seed: int,
    *,
    mixed_precision: Precision = False,
    batch_normalisation: bool = False,
    rematerialise: bool = False,
    root: Path | None = None,
) -> keras.Model:
    """Return an untrained network.

    The first layer is `scaling`; the last one, `probability`, is a 1 × 1 convolution with a sigmoid. Names are those of
    the options alone, so that a network without batch normalisation takes the folded weights of one with it by name.

    Args:
        spec: network and options.
        mean: mean of each band over the valid training pixels, (bands,).
        deviation: standard deviation of each band, above 0, (bands,).
        seed: seed of the weights, which depend on nothing else.
        mixed_precision: as for `talud.networks.unet.build`.
        batch_normalisation: normalise the output of each convolution except the last before its activation.
        rematerialise: as for `talud.networks.unet.build`.
        root: folder to which the path of a file of weights is relative; default: the current one.

    Returns:
        A model from `stack` (batch, height, width, bands), in physical units with NaN for invalid, to `probability`
        (batch, height, width, 1), both float32.

    Raises:
        ModelError: A layer is not local, the options do not fit the bands, or a file of weights cannot be used.
    """
    network = _NETWORKS.get(spec.name)
    if network is None:
        options = spec.options.model_dump()
        model = unet.build(
            **options,
            mean=mean,
            deviation=deviation,
            seed=seed,
            mixed_precision=mixed_precision,
            batch_normalisation=batch_normalisation,
            rematerialise=rematerialise,
        )
    else:
        blocks = Blocks(seed, f"mixed_{mixed_precision}" if mixed_precision else "float32", batch_normalisation)
        stack = layers.Input((None, None, len(mean)), dtype="float32", name="stack")
        scaling = Scaling(dtype="float32", name="scaling")
        probability = blocks.probability(network.features(scaling(stack), spec.options, blocks))
        scaling.set_weights([mean, deviation])
        model = keras.Model(stack, probability, name=spec.name)
        if network.load_weights:
            network.load_weights(model, spec.options, root or Path())
        model = Rematerialised(model) if rematerialise else model
    check_local(model)
    return model


def pretrained_weights(spec: NetworkSpec, model: keras.Model) -> list[keras.Variable]:
    """Return the trainable weights of the layers that start from pretrained ones.

    Args:
        spec: network and options.
        model: network of `build_network` with them.
    """
    network = _NETWORKS.get(spec.name)
    if network is None or network.pretrained_prefixes is None:
        return []
    prefixes = network.pretrained_prefixes(spec.options)
    chosen = [layer for layer in model.layers if layer.name.startswith(prefixes)]
    return [weight for layer in chosen for weight in layer.trainable_weights]
