"""Tests of Platt scaling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from onnx_writer import to_onnx
from talud.networks import unet
from talud.training import calibration


def draw_pixels(slope: float, offset: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return overconfident logits, and truths that follow a Platt scaling."""
    generator = np.random.default_rng(seed)
    logits = np.concatenate([generator.normal(-300, 150, count), generator.normal(100, 200, count // 4)])
    return logits, generator.random(len(logits)) < expit(slope * logits + offset)


def test_platt_scaling_recovers_slope_and_offset() -> None:
    logits, truth = draw_pixels(0.02, -1.5, 200_000, seed=1)
    scaling = calibration.fit_platt_scaling(logits, truth)
    assert scaling.slope == pytest.approx(0.02, rel=0.02)
    assert scaling.offset == pytest.approx(-1.5, abs=0.03)


@pytest.mark.parametrize(("slope", "offset"), [(0.005, 0.5), (0.02, -1.5), (0.05, -3.0)])
def test_platt_scaling_matches_logistic_regression(slope: float, offset: float) -> None:
    logits, truth = draw_pixels(slope, offset, 2_000, seed=2)
    positive = int(truth.sum())
    target = np.where(truth, (positive + 1) / (positive + 2), 1 / (len(truth) - positive + 2))
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(
        np.tile(logits, 2)[:, None] / 100, np.repeat([True, False], len(logits)), np.concatenate([target, 1 - target])
    )
    scaling = calibration.fit_platt_scaling(logits, truth)
    assert scaling.slope == pytest.approx(theirs.coef_[0, 0] / 100, rel=1e-4)
    assert scaling.offset == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_platt_scaling_is_finite_for_separable_classes() -> None:
    truth = np.arange(1000) >= 900
    scaling = calibration.fit_platt_scaling(np.where(truth, 400.0, -400.0), truth)
    assert scaling.probability(np.array([400.0, -400.0])) == pytest.approx([101 / 102, 1 / 902], rel=1e-4)


def test_uninformative_logits_give_no_positive_slope() -> None:
    truth = np.arange(100) < 30
    assert calibration.fit_platt_scaling(np.full(100, 7.0), truth).slope == 0
    assert calibration.fit_platt_scaling(np.arange(100.0), truth).slope < 0


def test_scaling_changes_only_the_last_layer() -> None:
    model = unet.build(4, 2, np.full(3, 90, np.float32), np.full(3, 30, np.float32), seed=3)
    stack = np.random.default_rng(1).normal(90, 30, (3, 30, 41)).astype(np.float32)
    stack[1, :5, :5] = np.nan
    before, graph = calibration.compute_logits(model, stack, alignment=4), to_onnx(model)
    calibration.apply_to_last_layer(model, calibration.PlattScaling(0.25, -0.75))
    assert calibration.compute_logits(model, stack, alignment=4) == pytest.approx(0.25 * before - 0.75, abs=1e-6)
    scaled = to_onnx(model)
    assert [node.op_type for node in scaled.graph.node] == [node.op_type for node in graph.graph.node]
    changed = [
        new.name for new, old in zip(scaled.graph.initializer, graph.graph.initializer, strict=True) if new != old
    ]
    assert sorted(changed) == ["probability_bias", "probability_kernel"]


def test_logits_match_probabilities_for_any_array_size() -> None:
    model = unet.build(4, 2, np.full(3, 90, np.float32), np.full(3, 30, np.float32), seed=3)
    stack = np.random.default_rng(2).normal(90, 30, (3, 32, 40)).astype(np.float32)
    probability = np.asarray(model(np.moveaxis(stack, 0, -1)[None]))[0, ..., 0]
    assert expit(calibration.compute_logits(model, stack, alignment=4)) == pytest.approx(probability, abs=1e-6)
