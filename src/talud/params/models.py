"""Options of training, search, promotion and post-processing of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from annotated_types import Len
from pydantic import Field, model_validator

from talud.bands import Group
from talud.params.networks import PLAIN_UNET, NetworkName, NetworkOptions, NetworkSettings, network_options
from talud.params.reading import Frozen

Segmentation = Literal["felzenszwalb", "slic"]


class Search(Frozen):
    """Hyperparameter search: full grid or successive halving."""

    method: Literal["grid", "halving"] = Field(
        "grid",
        description="grid: all trials run all epochs; halving: only the better trials continue (first_epochs, factor)",
    )
    network: Annotated[tuple[NetworkName, ...], Len(1)] = Field((PLAIN_UNET,), description="names of networks")
    filters: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Len(1)] = Field(
        description="numbers of filters of the first level"
    )
    learning_rate: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Len(1)] = Field(
        description="learning rates at the start of training"
    )
    batch_size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Len(1)] = Field(
        description="numbers of patches in a batch"
    )
    epochs: int = Field(ge=1, description="maximum number of epochs of a trial")
    trials: int | None = Field(
        None, ge=1, description="number of combinations, drawn at random with the seed; default: all"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="epochs without a higher validation F1 after which a trial stops; default: no early stopping",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="seeds of weights and batch order; each combination runs with each; default: the project's seed"
    )
    first_epochs: int = Field(5, ge=1, description="halving: epochs before the first selection")
    factor: int = Field(
        3, ge=2, description="halving: 1/factor of the trials continue, for factor times as many epochs"
    )
    failures: int = Field(5, ge=0, description="number of failed trials that a study tolerates")

    @model_validator(mode="after")
    def _no_value_twice(self) -> Self:
        for name in ("network", "filters", "learning_rate", "batch_size", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                shown = (value if isinstance(value, str) else f"{value:g}" for value in values)
                raise ValueError(f"{name} contains a value twice: {', '.join(shown)}")
        return self


class DroppingOptions(Frozen):
    """Random removal of band groups and clouded pixels."""

    groups: dict[Group, Annotated[float, Field(ge=0, lt=1)]] = Field(
        {}, description="band group → probability of its removal from a patch; one group always remains"
    )
    clouds: float = Field(0, ge=0, le=1, description="share of patches with a simulated cloud over the optical bands")
    tolerance: float = Field(
        0.2, ge=0, le=1, description="largest loss of F1 at which a subset of the band groups is still used for maps"
    )

    @model_validator(mode="after")
    def _groups_are_read(self) -> Self:
        if Group.OCCLUSION in self.groups:
            raise ValueError(f"groups: '{Group.OCCLUSION}' is not an input of models; give optical, terrain or sar")
        return self

    def optional_groups(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """Return the groups that may be missing."""
        if len(groups) < 2:
            return ()
        return tuple(group for group in groups if self.groups.get(group) or (group is Group.OPTICAL and self.clouds))


class Augmentation(Frozen):
    """Data augmentation of training patches; by default only symmetries."""

    symmetries: bool = Field(True, description="random rotation by 90° and reflection")
    scale: float = Field(
        0.0, ge=0, lt=1, description="random zoom: largest share of the side that is cropped; pixels are interpolated"
    )
    shrink: float = Field(
        0.0,
        ge=0,
        le=1,
        description="random zoom out: largest share by which the window's side exceeds the patch's, which is mirrored "
        "at its border; the zoom is log-uniform between both limits",
    )
    gain: float = Field(0.0, ge=0, le=1, description="optical, SAR: standard deviation of the logarithm of the gain")
    offset: float = Field(
        0.0,
        ge=0,
        le=2,
        description="optical, SAR: standard deviation of the offset, in standard deviations of the band",
    )
    gamma: float = Field(0.0, ge=0, le=1, description="optical: standard deviation of the logarithm of the exponent")
    haze: float = Field(0.0, ge=0, lt=1, description="optical: largest share of the signal replaced by haze")
    per_band: float = Field(
        0.6, ge=0, description="gain, offset and gamma of single bands, relative to those of all bands"
    )
    light: float = Field(
        0.0,
        ge=0,
        le=1,
        description="optical: largest logarithm of gamma and gain, largest change of saturation, and 0.3 of it the "
        "largest offset in white levels; common to all bands of a patch",
    )
    hue: float = Field(
        0.0,
        ge=0,
        le=1,
        description="optical: largest logarithm of the gain, and 0.3 of it the largest offset in white levels; of each "
        "band of a patch",
    )
    unchanged: float = Field(0.2, ge=0, le=1, description="share of patches that light and hue leave as they are")
    paste: float = Field(
        0.0, ge=0, le=1, description="share of patches into which landslides of another patch are pasted"
    )


class Recipe(Frozen):
    """Training recipe: augmentation, loss, schedule and regularisation.

    The defaults are those of the published study, as far as it states them.
    """

    augmentation: Augmentation = Augmentation()
    loss: Literal["dice", "dice_cross_entropy", "tversky", "focal_tversky"] = Field(
        "dice", description="loss function, computed over the whole batch"
    )
    schedule: Literal["constant", "cosine", "one_cycle"] = Field(
        "constant",
        description="learning rate schedule; cosine: warm-up of half an epoch, then decay to a hundredth; one_cycle: "
        "warm-up from 1/25 over 15 % of the steps of all epochs, then decay to 0",
    )
    encoder_rate: float = Field(
        1.0,
        gt=0,
        le=1,
        description="learning rate of layers with pretrained weights, relative to that of the others; without effect "
        "on networks that have none",
    )
    weight_decay: float = Field(0.0, ge=0, lt=1, description="weight decay of AdamW, relative to the learning rate")
    averaging: float = Field(
        0.0, ge=0, lt=1, description="momentum of the moving average of the weights, which is exported; 0: no averaging"
    )
    batch_normalisation: bool = Field(
        False, description="batch normalisation after each convolution; folded into the convolution at export"
    )
    dropping: DroppingOptions = DroppingOptions()


class TrainingOptions(Frozen):
    """Network depth and computation, the same for all trials."""

    depth: int = Field(
        4,
        ge=1,
        le=6,
        description="number of times that the network halves the scale; pretrained_unet has its own number",
    )
    networks: NetworkSettings = Field(NetworkSettings(), description="name of a network → its further settings")
    rematerialise: bool = Field(
        False, description="recompute activations in the backward pass (gradient checkpointing): less memory, more time"
    )
    mixed_precision: Literal[False, "float16", "bfloat16"] = Field(
        False,
        description="16-bit computation with float32 weights: float16 on a GPU; bfloat16 on a GPU or a CPU with "
        "AVX512-BF16 or AMX, where it halves the time",
    )
    xla: Literal[False, "auto"] = Field(
        False, description="auto: compile the training step with XLA if Keras supports it; JAX always does"
    )
    calibrate: bool = Field(True, description="calibrate probabilities on the validation blocks (Platt scaling)")
    balance: Literal["none", "area"] = Field(
        "none",
        description="sampling of training patches: none, each patch once in an epoch; area, equally many of "
        "each training area, in an epoch of about the same length",
    )

    def network_options(self, name: NetworkName, filters: int, bands: Sequence[str]) -> NetworkOptions:
        """Return the options of a network for the bands of a stack.

        Raises:
            ParamsError: The depth does not suit the network.
        """
        return network_options(name, filters, self.depth, self.networks, bands)


class Promotion(Frozen):
    """Promotion gate: conditions for a version to become champion."""

    resamples: int = Field(
        2000, ge=100, le=100_000, description="bootstrap resamples for the interval of a difference in F1"
    )
    megabytes: float | None = Field(500.0, gt=0, description="maximum size of the ONNX file in MB; null: no limit")
    seconds_per_megapixel: float | None = Field(
        None, gt=0, description="maximum seconds for a million pixels on the CPU of this machine; null: not measured"
    )
    require_skill: bool = Field(
        True, description="require an F1 higher than that of mapping every pixel, or none, as landslide"
    )


class Postprocessing(Frozen):
    """Post-processing of probabilities; by default only the threshold."""

    hysteresis_low: float | None = Field(
        None,
        ge=0,
        le=1,
        description="lower threshold of hysteresis, for pixels connected to a pixel above the upper one; null: none",
    )
    hysteresis_high: float | None = Field(
        None, gt=0, le=1, description="upper threshold of hysteresis; default: threshold of the model"
    )
    minimum_mapping_unit: float = Field(0, ge=0, description="smallest landslide that is kept, in m²")
    segments: Literal["none", Segmentation] = Field(
        "none", description="segmentation of the optical image, for averaging probabilities within segments"
    )
    segment_scale: float = Field(
        30, gt=0, description="felzenszwalb: scale parameter, larger for larger segments; slic: pixels per segment"
    )
    segment_weight: float = Field(
        1, gt=0, le=1, description="weight of the mean of the segment; the rest is the weight of the pixel"
    )
    slope_rule: float = Field(
        0, ge=0, le=90, description="minimum mean slope of a landslide in degrees; flatter ones are removed"
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        low, high = self.hysteresis_low, self.hysteresis_high
        if high is not None and low is None:
            raise ValueError("hysteresis_high needs hysteresis_low")
        if low is not None and high is not None and low > high:
            raise ValueError(f"hysteresis_low is {low:g} but must not exceed hysteresis_high, {high:g}")
        return self

    @property
    def changes(self) -> dict[str, float | str]:
        """Options that differ from the defaults, by name."""
        return self.model_dump(exclude_defaults=True)
