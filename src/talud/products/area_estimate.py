"""Landslide area with its interval: the map's area corrected by the model's errors on its validation blocks."""

from __future__ import annotations

from dataclasses import dataclass

from talud.contract import Contract
from talud.mapping.domain import DomainVerdict
from talud.metrics import DesignEffect, stratified_estimate

_DOUBTS = {
    DomainVerdict.DIFFERS: "it does not hold here, for this area differs from the training areas",
    DomainVerdict.FAR: "it does not hold here, for this area is far from the training areas",
    DomainVerdict.NO_VALUES: "whether it holds here is not known, for a band has no valid values",
    DomainVerdict.NO_HISTOGRAM: "whether it holds here is not known, for the model holds no histograms",
}


@dataclass(frozen=True)
class AreaEstimate:
    """The landslide area of what is mapped, whether the map shows it or misses it (`talud.metrics`).

    Attributes:
        m2: of landslide.
        low_m2: end of the 95 % interval.
        high_m2: its other end.
        blocks: of validation that it rests on.
        assumes: what must hold for it, in words.
        doubt: why it does not hold, or may not, in words; empty where the domain report has nothing against it.
    """

    m2: float
    low_m2: float
    high_m2: float
    blocks: int
    assumes: str = "this area errs as the validation blocks do"
    doubt: str = ""

    @property
    def sentence(self) -> str:
        """Return the estimate in one sentence, without its end."""
        low, estimate, high = (f"{area / 10_000:,.1f}" for area in (self.low_m2, self.m2, self.high_m2))
        given = f"95 % interval {low} to {high} ha if {self.assumes}"
        return f"estimated landslide area: {estimate} ha, {given}" + (f"; {self.doubt}" if self.doubt else "")


def why_no_estimate(contract: Contract, mapped: int) -> str:
    """Return the reason why the landslide area cannot be estimated.

    The text is empty if it can be.

    Args:
        contract: of the model.
        mapped: pixels that the map says anything of.
    """
    known = contract.measured.validation
    if not mapped:
        return "nothing is mapped"
    if known is None and (contract.derived.adapted or contract.derived.finetuned):
        how = "adapted" if contract.derived.adapted else "fine-tuned"
        return f"the model was {how}, so how it errs on its validation blocks is not known any more"
    if known is None:
        return "the model does not state how it errs on its validation blocks; models of a newer talud train do"
    if known.blocks < 2:
        return f"the model was validated on {known.blocks} block, and two are needed"
    if min(known.tp + known.fp, known.fn + known.tn) < 2:
        return "on its validation blocks the model mapped everything, or nothing, as landslide"
    return ""


def estimate_area(
    contract: Contract, landslide: int, background: int, pixel_area: float, verdict: DomainVerdict
) -> AreaEstimate | None:
    """Estimate the landslide area of a map made as the validation blocks were: same file, threshold, and one pass.

    Args:
        contract: of the model.
        landslide: pixels that are mapped as landslide.
        background: as background.
        pixel_area: in m².
        verdict: of the domain report.

    Returns:
        None where the contract holds no counts or too few, or nothing is mapped.
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
