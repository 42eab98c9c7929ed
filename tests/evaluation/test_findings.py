"""Tests of the check of the study's findings."""

from __future__ import annotations

import pytest

from talud.evaluation import paper
from talud.evaluation.paper import IMAGE_MODELS, Verdict
from talud.evaluation.results import Trial, Trials


def table(*trials: tuple[int, float, int, float]) -> Trials:
    """Make a table of trials from hyperparameters and F1.

    Args:
        trials: filters, learning rate, batch size and validation F1 of each trial.
    """
    made = [
        Trial(
            run_id=f"{number:032x}",
            name=f"trial {number}",
            filters=filters,
            learning_rate=rate,
            batch_size=batch,
            epochs=150,
            best_epoch=100,
            seconds=600,
            parameters=1,
            scores={"f1": f1},
        )
        for number, (filters, rate, batch, f1) in enumerate(trials)
    ]
    best = max(made, key=lambda trial: trial.scores["f1"]).run_id
    study = {"band_set": "any", "search": "study", "data_version": "0", "seed": 1, "parent_run_id": "p"}
    return Trials(**study, best=best, trials=tuple(made))


def theirs(name: str, f1: float) -> tuple[int, float, int, float]:
    model = IMAGE_MODELS[name]
    return model.filters, model.learning_rate, model.batch_size, f1


def test_findings_hold_on_the_studys_own_numbers() -> None:
    own = {name: model.f1 for name, model in IMAGE_MODELS.items()}
    assert paper.check_training_zone(own).verdict is Verdict.HOLDS
    away = {name: model.inference.f1 for name, model in IMAGE_MODELS.items()}
    losses = {name: model.f1_loss for name, model in IMAGE_MODELS.items()}
    found = paper.check_transfer("la_liboriana", away, losses)
    assert found.verdict is Verdict.HOLDS
    assert found.reason == (
        "on la_liboriana it costs 36 to 46%, as in the study, and 3band is 0.068 above the better of the others "
        "(F1 3band 0.445, 5band 0.361, 7band 0.378)"
    )
    best = {name: table(theirs(name, 0.7), (16, 1e-3, 8, 0.6)) for name in IMAGE_MODELS}
    assert paper.check_configurations(best).verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("f1", "verdict"),
    [
        ((0.70, 0.67, 0.72), Verdict.HOLDS),
        ((0.70, 0.67, 0.73), Verdict.IN_PART),  # 5 bands are worse, but 3 and 7 differ
        ((0.70, 0.69, 0.70), Verdict.IN_PART),  # 3 and 7 are equal, but 5 is too
        ((0.60, 0.69, 0.70), Verdict.FAILS),
        ((0.60, 0.70, 0.80), Verdict.FAILS),
    ],
)
def test_training_zone_verdict_depends_on_both_claims(f1: tuple[float, ...], verdict: Verdict) -> None:
    assert paper.check_training_zone(dict(zip(IMAGE_MODELS, f1, strict=True))).verdict is verdict


@pytest.mark.parametrize(
    ("f1", "losses", "verdict", "words"),
    [
        (
            (0.50, 0.40, 0.40),
            (0.1, 0.2, 0.3),
            Verdict.IN_PART,
            "it costs 10 to 30%, less than in the study, and 3band is 0.100 above",
        ),
        ((0.41, 0.40, 0.40), (0.6, 0.6, 0.5), Verdict.IN_PART, "it costs 50 to 60%, more than in the study"),
        ((0.40, 0.50, 0.45), (0.4, 0.4, 0.4), Verdict.IN_PART, "3band is 0.100 below the better"),
        ((0.40, 0.50, 0.45), (0.6, 0.6, 0.5), Verdict.FAILS, "3band is 0.100 below the better"),
        ((0.40, 0.50, 0.45), (-0.1, 0.2, 0.3), Verdict.FAILS, "F1 changes by −30 to +10%"),
        ((0.40, 0.50, 0.45), (0.3, 0.2, 0.4), Verdict.IN_PART, "it costs 20 to 40%, and 3band"),
    ],
)
def test_transfer_verdict_depends_on_loss_and_ranking(
    f1: tuple[float, ...], losses: tuple[float, ...], verdict: Verdict, words: str
) -> None:
    named = [dict(zip(IMAGE_MODELS, values, strict=True)) for values in (f1, losses)]
    found = paper.check_transfer("x", *named)
    assert found.verdict is verdict
    assert words in found.reason


def test_configurations_are_judged_only_if_compared() -> None:
    best = table(theirs("3band", 0.7), (16, 1e-3, 8, 0.6))
    close = table(theirs("5band", 0.70), (16, 1e-3, 8, 0.71), (16, 1e-3, 16, 0.5))
    far = table(theirs("7band", 0.5), (16, 1e-3, 8, 0.6))
    alone, other = table(theirs("5band", 0.7)), table((16, 1e-3, 8, 0.6), (16, 1e-3, 16, 0.5))
    found = paper.check_configurations({"3band": best, "5band": close, "7band": far})
    assert found.verdict is Verdict.IN_PART
    assert found.reason == (
        "rank of the study’s configuration: 1 of 2 for 3band; 2 of 3 (validation F1 0.010 below the best) for 5band; "
        "2 of 2 (validation F1 0.100 below the best) for 7band"
    )
    assert paper.check_configurations({"7band": far}).verdict is Verdict.FAILS
    partly = paper.check_configurations({"3band": best, "5band": alone})
    assert partly.verdict is Verdict.IN_PART
    assert "not compared with others for 5band and 7band" in partly.reason
    assert paper.check_configurations({"3band": other, "5band": alone}).verdict is Verdict.UNDECIDED


def test_findings_are_undecided_without_all_band_sets() -> None:
    found = paper.check_training_zone({"3band": 0.7, "7band": 0.7})
    assert (found.verdict, found.reason) == (Verdict.UNDECIDED, "no scores of 5band")
    assert paper.check_transfer("x", {"3band": 0.4}, {"3band": 0.4}).verdict is Verdict.UNDECIDED
    assert not paper.transfer_without_labels().judged


def test_learning_rates_match_within_rounding() -> None:
    rate = 5.0e-4 * (1 + 1e-12)
    assert paper.check_configurations({"3band": table((64, rate, 16, 0.7), (16, 1e-3, 8, 0.6))}).judged
