"""Options of training, search, promotion and post-processing of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from annotated_types import Len
from pydantic import Field, model_validator

from talud.bands import Group
from talud.params.reading import Frozen

Segmentation = Literal["felzenszwalb", "slic"]


class Search(Frozen):
    """Hyperparameters that a study tries, in full or by successive halving."""

    method: Literal["grid", "halving"] = Field(
        "grid", description="grid: every trial for all epochs; halving: the better ones go on, see first_epochs, factor"
    )
    filters: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Len(1)] = Field(description="of the first level")
    learning_rate: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Len(1)]
    batch_size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Len(1)]
    epochs: int = Field(ge=1, description="of a trial, at most")
    trials: int | None = Field(None, ge=1, description="of all combinations, drawn with the seed; default: all")
    patience: int | None = Field(None, ge=1, description="epochs without a higher validation F1 that end a trial")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="of weights and order: each combination is tried with each; default: the project's seed"
    )
    first_epochs: int = Field(5, ge=1, description="halving: after which the first trials are left behind")
    factor: int = Field(3, ge=2, description="halving: 1/factor of the trials go on, for factor times as many epochs")
    failures: int = Field(5, ge=0, description="trials that may fail; with one more the study stops")

    @model_validator(mode="after")
    def _no_value_twice(self) -> Self:
        for name in ("filters", "learning_rate", "batch_size", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} holds a value twice: {', '.join(f'{value:g}' for value in values)}")
        return self


class DroppingOptions(Frozen):
    """Band groups and clouded pixels that are dropped from training patches at random."""

    groups: dict[Group, Annotated[float, Field(ge=0, lt=1)]] = Field(
        {}, description="band group → probability that it is dropped from a patch, of which one is always left"
    )
    clouds: float = Field(
        0, ge=0, le=1, description="share of the patches that get a simulated cloud over their optical bands"
    )
    tolerance: float = Field(
        0.2, ge=0, le=1, description="most F1 that a subset of groups may lack to all of them, to be mapped with"
    )

    @model_validator(mode="after")
    def _groups_are_read(self) -> Self:
        if Group.OCCLUSION in self.groups:
            raise ValueError(f"groups: no model reads '{Group.OCCLUSION}'; name optical, terrain or sar")
        return self

    def optional_groups(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """Return the groups of a network that it learns to do without."""
        if len(groups) < 2:
            return ()
        return tuple(group for group in groups if self.groups.get(group) or (group is Group.OPTICAL and self.clouds))


class Augmentation(Frozen):
    """Random changes of training patches in each epoch; by default only symmetries."""

    symmetries: bool = Field(True, description="turn and mirror (the dihedral group D4)")
    scale: float = Field(0.0, ge=0, lt=1, description="largest share of the side that is cut off; the rest is enlarged")
    gain: float = Field(0.0, ge=0, le=1, description="optical, SAR: standard deviation of the gain's logarithm")
    offset: float = Field(0.0, ge=0, le=2, description="optical, SAR: standard deviation, in deviations of the band")
    gamma: float = Field(0.0, ge=0, le=1, description="optical: standard deviation of the exponent's logarithm")
    haze: float = Field(0.0, ge=0, lt=1, description="optical: largest share of the signal that a veil takes")
    per_band: float = Field(0.6, ge=0, description="gain, offset and gamma of a band alone, as a share of the common")
    paste: float = Field(0.0, ge=0, le=1, description="share of patches that get another patch's landslides")


class Recipe(Frozen):
    """Options of a network's learning.

    The defaults are those of the published study, as far as it states them.
    """

    augmentation: Augmentation = Augmentation()
    loss: Literal["dice", "dice_cross_entropy", "tversky", "focal_tversky"] = "dice"
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate; cosine: half an epoch up to it, then down to a hundredth of it"
    )
    weight_decay: float = Field(0.0, ge=0, lt=1, description="of AdamW, in shares of the learning rate")
    averaging: float = Field(
        0.0, ge=0, lt=1, description="momentum of the moving average of the weights, which is kept; 0: none"
    )
    batch_normalisation: bool = Field(
        False, description="normalise after each convolution; in the exported network it is part of the convolution"
    )
    dropping: DroppingOptions = DroppingOptions()


class TrainingOptions(Frozen):
    """Depth and computation of the network in all trials of a study."""

    depth: int = Field(4, ge=1, le=6, description="poolings of the U-Net")
    rematerialise: bool = Field(
        False, description="compute blocks of the U-Net again in the backward pass: less memory, more time"
    )
    mixed_precision: Literal[False, "float16", "bfloat16"] = Field(
        False,
        description="compute in 16 bits, with float32 weights: float16 on a GPU, bfloat16 there or on a processor that "
        "has it (AVX512-BF16 or AMX), where it halves the time",
    )
    xla: Literal[False, "auto"] = Field(
        False, description="auto: compile the training step where Keras can; JAX always does"
    )
    calibrate: bool = Field(
        True, description="scale the logits of the exported model, so that its probabilities fit the validation blocks"
    )


class Promotion(Frozen):
    """Limits that a registered version must keep to become the champion."""

    resamples: int = Field(
        2000, ge=100, le=100_000, description="of the blocks, for the interval of a difference in F1"
    )
    megabytes: float | None = Field(500.0, gt=0, description="most that the ONNX file may have; null: no limit")
    seconds_per_megapixel: float | None = Field(
        None, gt=0, description="most that a million pixels may take on the CPU that registers; null: not measured"
    )
    require_skill: bool = Field(
        True, description="a champion must be better than calling everything, or nothing, a landslide"
    )


class Postprocessing(Frozen):
    """Processing of probabilities beyond the threshold; by default none."""

    hysteresis_low: float | None = Field(
        None, ge=0, le=1, description="least probability of a pixel that touches a sure one; default: one threshold"
    )
    hysteresis_high: float | None = Field(
        None, gt=0, le=1, description="least probability of a sure pixel; default: the model's threshold"
    )
    minimum_mapping_unit: float = Field(0, ge=0, description="m² of the smallest landslide that is kept")
    segments: Literal["none", Segmentation] = Field(
        "none", description="segments of the optical image, whose mean probability is blended with the pixels'"
    )
    segment_scale: float = Field(
        30, gt=0, description="felzenszwalb: its scale, higher for larger segments; slic: pixels of a segment"
    )
    segment_weight: float = Field(1, gt=0, le=1, description="of a segment's mean; the rest is the pixel's own")
    slope_rule: float = Field(0, ge=0, le=90, description="degrees: landslides whose mean slope is less are dropped")

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        low, high = self.hysteresis_low, self.hysteresis_high
        if high is not None and low is None:
            raise ValueError("hysteresis_high needs hysteresis_low")
        if low is not None and high is not None and low > high:
            raise ValueError(f"hysteresis_low is {low:g}, hysteresis_high {high:g}; exchange them")
        return self

    @property
    def changes(self) -> dict[str, float | str]:
        """The options that are not the default, by name."""
        return self.model_dump(exclude_defaults=True)
