"""Tests of the choice between a model as it is and its adaptations.

The table has signs and F1 of maps of real patches of other regions (docs/explanation/transfer.md).
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talud.adaptation.decision import Alignment, DeclinedError, Signs, choose, is_plausible, report_lines

BANDS, LAYERS = Alignment("bands", 1), Alignment("layers", 1)


def outcome(signs: list[Signs], training_share: float | None) -> Signs | DeclinedError:
    """Return the chosen alignment, or the error."""
    try:
        return signs[1 + choose(signs, training_share, "x.tif")]
    except DeclinedError as error:
        return error


class Case(NamedTuple):
    """A model in another region: share, agreement and F1 as it is, with bands, and with bands and layers aligned."""

    name: str
    training_share: float
    as_it_is: tuple[float, float, float]
    bands: tuple[float, float, float]
    layers: tuple[float, float, float]

    @property
    def signs(self) -> list[Signs]:
        rows = zip((None, BANDS, LAYERS), (self.as_it_is, self.bands, self.layers), strict=True)
        return [Signs(alignment, share, agreement) for alignment, (share, agreement, _) in rows]

    @property
    def chosen_f1(self) -> float:
        found = outcome(self.signs, self.training_share)
        return {None: self.as_it_is, BANDS: self.bands, LAYERS: self.layers}[
            found.signs[0].alignment if isinstance(found, DeclinedError) else found.alignment
        ][2]


CASES = (
    Case("plain, a → c", 0.0435, (0.011, 0.766, 0.111), (0.038, 0.849, 0.336), (0.068, 0.875, 0.509)),
    Case("plain, a → d", 0.0435, (0.005, 0.624, 0.107), (0.048, 0.900, 0.675), (0.066, 0.904, 0.732)),
    Case("plain, c and d → a", 0.1094, (0.383, 0.829, 0.199), (0.191, 0.749, 0.324), (0.189, 0.771, 0.327)),
    Case("colour, c and d → a", 0.1094, (0.137, 0.818, 0.395), (0.130, 0.824, 0.413), (0.127, 0.843, 0.426)),
    Case("pretrained, a → c", 0.0435, (0.008, 0.669, 0.093), (0.014, 0.699, 0.147), (0.063, 0.748, 0.478)),
    Case("pretrained, a → d", 0.0435, (0.031, 0.743, 0.349), (0.046, 0.802, 0.455), (0.060, 0.729, 0.529)),
    Case("pretrained, scale, a → c", 0.0435, (0.038, 0.857, 0.361), (0.047, 0.841, 0.430), (0.064, 0.684, 0.500)),
    Case("pretrained, scale, a → d", 0.0435, (0.055, 0.754, 0.617), (0.067, 0.759, 0.687), (0.063, 0.733, 0.613)),
    Case("pretrained, c and d → a", 0.1094, (0.049, 0.784, 0.489), (0.040, 0.714, 0.422), (0.161, 0.664, 0.378)),
    Case("pretrained, scale, a and d → c", 0.046, (0.063, 0.833, 0.488), (0.053, 0.761, 0.459), (0.086, 0.717, 0.577)),
    Case(
        "pretrained, balanced, a and d → c", 0.046, (0.076, 0.808, 0.557), (0.035, 0.776, 0.333), (0.095, 0.729, 0.610)
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_choice_is_near_the_best_of_each_case(case: Case) -> None:
    scores = [case.as_it_is[2], case.bands[2], case.layers[2]]
    assert case.chosen_f1 >= max(scores) - 0.09
    assert case.chosen_f1 >= case.as_it_is[2]


def test_choice_is_near_the_best_mean_without_its_losses() -> None:
    chosen, as_it_is, bands, layers = (
        [case.chosen_f1 for case in CASES],
        *([case[place][2] for case in CASES] for place in (2, 3, 4)),
    )

    def largest_loss(scores: list[float]) -> float:
        return max(before - after for before, after in zip(as_it_is, scores, strict=True))

    means = [sum(scores) / len(CASES) for scores in (as_it_is, bands, layers, chosen)]
    assert means == pytest.approx([0.342, 0.426, 0.516, 0.507], abs=0.001)
    losses = [largest_loss(scores) for scores in (bands, layers, chosen)]
    assert losses == pytest.approx([0.224, 0.111, 0], abs=0.001)


def test_ruined_map_loses_although_it_agrees_with_itself() -> None:
    signs = CASES[2].signs
    assert max(signs, key=lambda one: one.agreement) is signs[0]
    assert not is_plausible(signs[0], CASES[2].training_share)
    assert choose(signs, CASES[2].training_share, "x.tif") == 1


@pytest.mark.parametrize(
    ("training_share", "share", "plausible"),
    [
        (0.04, 0.23, False),  # the map that talud adapt once recommended
        (0.0435, 0.161, True),  # the labels of c, for a model trained on a
        (0.01, 0.15, True),
        (0.01, 0.17, False),
        (0.3, 0.49, True),
        (0.3, 0.51, False),
        (None, 0.49, True),
        (None, 0.51, False),
    ],
)
def test_plausible_share_depends_on_training_areas(training_share: float, share: float, plausible: bool) -> None:
    assert is_plausible(Signs(None, share, 0.9), training_share) is plausible


SIGNS = st.builds(Signs, st.just(LAYERS), st.floats(0, 1), st.floats(-1, 1))


@given(SIGNS, SIGNS, SIGNS, st.none() | st.floats(0, 1))
def test_implausible_map_is_never_chosen_or_kept(
    original: Signs, bands: Signs, layers: Signs, training_share: float | None
) -> None:
    signs = [original, bands, layers]
    found = outcome(signs, training_share)
    if isinstance(found, DeclinedError):
        assert found.usable == is_plausible(original, training_share)
        assert ("use the original" in str(found)) == found.usable
        assert found.usable or not any(one.share and is_plausible(one, training_share) for one in signs)
    else:
        assert is_plausible(found, training_share)


def test_empty_map_is_no_improvement() -> None:
    empty = [Signs(None, 0, 0), Signs(BANDS, 0, 0), Signs(LAYERS, 0, 0)]
    found = outcome(empty, 0.05)
    assert isinstance(found, DeclinedError)
    assert "its maps would show no landslide; use the original model" in str(found)


def test_report_lines_mark_implausible_maps() -> None:
    first, *_, last = report_lines(CASES[2].signs, CASES[2].training_share)
    assert first == "as it is                  landslide   38%, agreement 0.829, not plausible"
    assert last == "training areas: landslide 11%"
