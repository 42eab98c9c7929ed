from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score, jaccard_score, matthews_corrcoef, precision_score, recall_score

from talud.metrics import SCORES, THRESHOLDS, Confusion, ThresholdHistogram, best_threshold, confusion, scores


def test_scores_agree_with_table_4_of_the_study() -> None:
    three = Confusion(tp=1258, fp=1113, fn=2021, tn=38441)
    five = Confusion(tp=873, fp=683, fn=2406, tn=38871)
    seven = Confusion(tp=922, fp=682, fn=2357, tn=38872)
    assert [round(table.f1, 3) for table in (three, five, seven)] == [0.445, 0.361, 0.378]


@pytest.mark.slow
@given(
    hnp.arrays(np.bool_, (7, 5)),
    hnp.arrays(np.uint8, (7, 5), elements=st.sampled_from([0, 1, 255])),
    hnp.arrays(np.bool_, (7, 5)),
)
def test_scores_agree_with_scikit_learn_on_counted_pixels(
    predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray
) -> None:
    counted = (truth != 255) & valid
    counts = confusion(predicted, truth, valid)
    assert counts.tp + counts.fp + counts.fn + counts.tn == counted.sum()
    if not counted.any():
        return
    expected, given_ = truth[counted], predicted[counted]
    for name, score in (
        ("precision", precision_score),
        ("recall", recall_score),
        ("f1", f1_score),
        ("iou", jaccard_score),
    ):
        assert counts.scores()[name] == getattr(counts, name) == pytest.approx(score(expected, given_, zero_division=0))
    both = len(set(expected.tolist()) | set(given_.tolist())) == 2  # of one class alone scikit-learn warns
    assert counts.mcc == pytest.approx(matthews_corrcoef(expected, given_) if both else 0, abs=1e-12)


@given(hnp.arrays(np.int64, (6, 4), elements=st.integers(0, 10**10)))
def test_scores_of_large_counts_are_exact(counts: np.ndarray) -> None:
    """Compare with Python's integers.

    A product of four counts of 10¹⁰ pixels needs 133 bits.
    """
    for (tp, fp, fn, tn), row in zip(counts.tolist(), scores(counts), strict=True):
        found = dict(zip(SCORES, row.tolist(), strict=True))
        assert found == Confusion(tp, fp, fn, tn).scores()
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        expected = (tp * tn - fp * fn) / math.isqrt(product << 200) * 2**100 if product else 0.0
        assert found["mcc"] == pytest.approx(expected, abs=1e-12)
        assert -1 - 1e-12 <= found["mcc"] <= 1 + 1e-12


def test_counts_of_halves_add_up() -> None:
    generator = np.random.default_rng(1)
    predicted = generator.random((40, 40)) > 0.5
    truth = (generator.random((40, 40)) > 0.9).astype(np.uint8)
    halves = confusion(predicted[:20], truth[:20]) + confusion(predicted[20:], truth[20:])
    assert halves == confusion(predicted, truth)


def f1_by_threshold(probability: np.ndarray, truth: np.ndarray) -> dict[float, float]:
    valid = np.isfinite(probability)
    thresholds = [step / 100 for step in range(1, 100)]
    return {threshold: confusion(probability >= np.float32(threshold), truth, valid).f1 for threshold in thresholds}


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1))
def test_best_threshold_is_the_good_one_nearest_to_one_half(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = (generator.random(400) > 0.8).astype(np.uint8)
    probability = np.clip(0.3 * truth + generator.random(400) * 0.7, 0, 1).round(2).astype(np.float32)
    probability[generator.random(400) > 0.9] = np.nan
    truth[generator.random(400) > 0.9] = 255
    f1 = f1_by_threshold(probability, truth)
    chosen = best_threshold(ThresholdHistogram.of(probability, truth), tie=0.01)
    good = [threshold for threshold, score in f1.items() if score >= max(f1.values()) - 0.01 - 1e-12]
    assert chosen in good
    assert abs(chosen - 0.5) == pytest.approx(min(abs(threshold - 0.5) for threshold in good))


def test_best_threshold_is_one_half_if_all_are_equal() -> None:
    assert best_threshold(ThresholdHistogram.of(np.array([0.0, 1.0], np.float32), np.array([0, 1], np.uint8))) == 0.5


def test_best_threshold_may_be_extreme_if_f1_gains() -> None:
    probability = np.array([0.10] * 50 + [0.05] * 50, np.float32)
    truth = np.array([1] * 50 + [0] * 50, np.uint8)
    assert best_threshold(ThresholdHistogram.of(probability, truth)) == 0.1


@given(
    hundredths=hnp.arrays(np.int64, 40, elements=st.integers(0, 100)),
    truth=hnp.arrays(np.uint8, 40, elements=st.sampled_from([0, 1, 255])),
    step=st.integers(1, 99),
)
def test_curve_has_the_confusion_of_each_threshold(hundredths: np.ndarray, truth: np.ndarray, step: int) -> None:
    probability = (hundredths / 100).astype(np.float32)  # on the thresholds themselves
    probability[::9] = np.nan
    levels = ThresholdHistogram.of(probability[:11], truth[:11]) + ThresholdHistogram.of(probability[11:], truth[11:])
    counts = levels.curve()[step - 1]
    assert THRESHOLDS[step - 1] == step / 100
    assert counts == confusion(probability >= step / 100, truth, np.isfinite(probability))
