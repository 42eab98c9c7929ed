"""Choice between a model as it is and its adaptations to an area, without labels.

Two signs are compared. A map is *plausible* if its landslide share is not far above that of the training areas. Among
the plausible maps, the model is the better the more it agrees with itself: the maps of a rotated and mirrored image
should be alike if the network recognises landslides there. A model that calls a large part of an area a landslide can
agree with itself in that, so agreement alone does not suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from talud.contract import AlignedPart, describe_alignment
from talud.errors import MismatchError
from talud.mapping import domain

# Parts that are tried, at full strength. On five pairs of a model and a region, half strength was never the best by
# more than 0.01 F1.
ALIGNMENTS: tuple[AlignedPart, ...] = ("bands", "layers")
# Loss of self-agreement that does not count as worse.
AGREEMENT_NOISE = 0.02


@dataclass(frozen=True)
class Alignment:
    """Alignment of a model to an area.

    Attributes:
        part: bands, or bands and the features of each layer.
        strength: share of the difference of the statistics that is corrected, above 0 and at most 1.
    """

    part: AlignedPart
    strength: float

    @property
    def label(self) -> str:
        """Description, such as "bands aligned"."""
        return describe_alignment(self.part, self.strength)


@dataclass(frozen=True)
class Signs:
    """Signs of a model's map of an area that need no label.

    Attributes:
        alignment: alignment of the model; None for the model as it is.
        share: share of landslide in the mapped pixels, 0 to 1.
        agreement: self-agreement, -1 to 1 (see `talud.adaptation.alignment.self_agreement`).
    """

    alignment: Alignment | None
    share: float
    agreement: float

    @property
    def label(self) -> str:
        """Description of the alignment, such as "as it is"."""
        return self.alignment.label if self.alignment else "as it is"


class DeclinedError(MismatchError):
    """Area to which a model is not adapted.

    Attributes:
        signs: signs of the model as it is and of each alignment that was tried.
        usable: whether the model is usable as it is; false if none of its maps is plausible.
    """

    def __init__(self, message: str, signs: Sequence[Signs], *, usable: bool) -> None:
        super().__init__(message)
        self.signs = tuple(signs)
        self.usable = usable


def choose(signs: Sequence[Signs], training_share: float | None, raster: str) -> int:
    """Return the index of the alignment to use.

    It is the plausible one with the highest self-agreement, unless the model as it is gives a plausible map too and
    agrees better with itself by more than `AGREEMENT_NOISE`.

    Args:
        signs: signs of the model as it is, and of each alignment.
        training_share: share of landslide in the training areas; None if it is not known.
        raster: name of the raster, for messages.

    Raises:
        DeclinedError: The model is better as it is, or none of the maps is plausible.
    """
    original, *aligned = signs
    # A map without landslides is no improvement, although its share is plausible.
    usable = [one for one in aligned if one.share > 0 and is_plausible(one, training_share)]
    best = max(usable, key=_agreement, default=None)
    if is_plausible(original, training_share):
        if best is not None and best.agreement >= original.agreement - AGREEMENT_NOISE:
            return aligned.index(best)
        compared = max(aligned, key=_agreement) if best is None else best
        raise DeclinedError(
            f"{raster}: the model is not adapted to it: {_comparison(original, compared, training_share)}; use the "
            "original model",
            signs,
            usable=True,
        )
    if best is not None:
        return aligned.index(best)
    known = "" if training_share is None else f", and the training areas had {domain.format_share(training_share)}"
    raise DeclinedError(
        f"{raster}: the model is not adapted to it, and its map as it is is probably wrong too: "
        f"{', '.join(describe(one) for one in signs)}{known}; fine-tune it with at least {domain.ADVISED_PATCHES} "
        "labelled patches of this area (talud finetune), or train with images of the region",
        signs,
        usable=False,
    )


def is_plausible(signs: Signs, training_share: float | None) -> bool:
    """Check if a map's landslide share is plausible."""
    return not domain.is_implausible(signs.share, training_share)


def describe(signs: Signs) -> str:
    """Describe the map of a model, such as "bands aligned 5%"."""
    return f"{signs.label} {domain.format_share(signs.share)}"


def report_lines(signs: Sequence[Signs], training_share: float | None) -> list[str]:
    """Return one line for the model as it is and for each alignment."""
    width = max(len(one.label) for one in signs)
    lines = [
        f"{one.label:{width}}  landslide {domain.format_share(one.share):>5}, agreement {one.agreement:.3f}"
        + ("" if is_plausible(one, training_share) else ", not plausible")
        for one in signs
    ]
    return (
        lines
        if training_share is None
        else [*lines, f"training areas: landslide {domain.format_share(training_share)}"]
    )


def _comparison(original: Signs, best: Signs, training_share: float | None) -> str:
    """State why the model is better as it is."""
    if not is_plausible(best, training_share):
        return f"its maps would be implausible ({describe(best)}; {describe(original)})"
    if not best.share:
        return "its maps would show no landslide"
    return (
        f"the correlation of its rotated and mirrored maps would fall from {original.agreement:.3f} to "
        f"{best.agreement:.3f}"
    )


def _agreement(signs: Signs) -> float:
    return signs.agreement
