"""Estimate of the landslide area of a map."""

from __future__ import annotations

from dataclasses import dataclass

from talud.contract import Contract
from talud.mapping.domain import DomainVerdict
from talud.metrics import DesignEffect, stratified_estimate

_DOUBTS = {
    DomainVerdict.DIFFERS: "it does not hold here because this area differs from the training areas",
    DomainVerdict.FAR: "it does not hold here because this area is far from the training areas",
    DomainVerdict.NO_VALUES: "it may not hold here because a band has no valid values",
    DomainVerdict.NO_HISTOGRAM: "it may not hold here because the model contains no histograms",
}


@dataclass(frozen=True)
class AreaEstimate:
    """Estimated landslide area within the mapped pixels.

    Attributes:
        m2: landslide area in m².
        low_m2: lower end of the 95 % interval in m².
        high_m2: upper end of the 95 % interval in m².
        blocks: number of validation blocks that the estimate is based on.
        assumes: assumption of the estimate, as a clause.
        doubt: reason why the assumption fails or may fail, as a clause; empty if the domain report gives none.
    """

    m2: float
    low_m2: float
    high_m2: float
    blocks: int
    assumes: str = "the model errs here as on its validation blocks"
    doubt: str = ""

    @property
    def sentence(self) -> str:
        """Estimate as one sentence without a full stop."""
        low, estimate, high = (f"{area / 10_000:,.1f}" for area in (self.low_m2, self.m2, self.high_m2))
        given = f"95 % interval {low} to {high} ha if {self.assumes}"
        return f"estimated landslide area: {estimate} ha, {given}" + (f"; {self.doubt}" if self.doubt else "")


def why_no_estimate(contract: Contract, mapped: int) -> str:
    """Return the reason for a missing estimate, or "".

    Args:
        contract: contract of the model.
        mapped: number of mapped pixels.
    """
    known = contract.measured.validation
    if not mapped:
        return "nothing is mapped"
    if known is None and (contract.derived.adapted or contract.derived.finetuned):
        how = "adapted" if contract.derived.adapted else "fine-tuned"
        return f"the model was {how}, so its errors on the validation blocks are no longer known"
    if known is None:
        return "the model does not state its errors on the validation blocks; train it with a newer release of talud"
    if known.blocks < 2:
        return f"the model was validated on {known.blocks} block, but at least two are required"
    if min(known.tp + known.fp, known.fn + known.tn) < 2:
        return "the model mapped everything, or nothing, on its validation blocks as landslide"
    return ""


def estimate_area(
    contract: Contract, landslide: int, background: int, pixel_area: float, verdict: DomainVerdict
) -> AreaEstimate | None:
    """Estimate the landslide area of a map.

    The stratified estimator corrects the mapped area for the errors on the validation blocks. The map must be made like
    the predictions on these blocks: with the same model file and threshold, in one pass.

    Args:
        contract: contract of the model.
        landslide: number of pixels mapped as landslide.
        background: number of pixels mapped as background.
        pixel_area: area of a pixel in m².
        verdict: verdict of the domain report.

    Returns:
        The estimate; None if the contract contains no or too few counts, or if nothing is mapped.
    """
    known, mapped = contract.measured.validation, landslide + background
    if known is None or why_no_estimate(contract, mapped):
        return None
    share = stratified_estimate(
        (known.tp, known.fn),
        (known.tp + known.fp, known.fn + known.tn),
        (landslide / mapped, background / mapped),
        DesignEffect(known.design_effects, known.correlation),
        known.blocks - 1,
    )
    low, middle, high = (one * mapped * pixel_area for one in (share.low, share.estimate, share.high))
    return AreaEstimate(middle, low, high, known.blocks, doubt=_DOUBTS.get(verdict, ""))
