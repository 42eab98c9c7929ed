"""Tests of the trials and rungs of a search."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fresh_clone import ROOT
from talud.errors import ParamsError
from talud.params import Params, Search
from talud.training.search import Rung, find_search, hyperparameter_sets, rungs, survivors, total_epochs

SMALL = {"filters": [16], "learning_rate": [1e-3], "batch_size": [8], "epochs": 9}


def search(**changes: object) -> Search:
    return Search.model_validate({**SMALL, **changes})


def test_study_search_is_table_1_of_paper() -> None:
    params = Params.read(ROOT / "params.yaml")
    trials = hyperparameter_sets(find_search(params, "study"), params.seed)
    assert len(trials) == len(set(trials)) == 54
    assert {trial.filters for trial in trials} == {16, 32, 64}
    assert {trial.learning_rate for trial in trials} == {5e-4, 10e-4, 5e-5, 10e-5, 5e-6, 10e-6}
    assert {trial.batch_size for trial in trials} == {16, 32, 64}
    assert {(trial.epochs, trial.patience) for trial in trials} == {(150, None)}
    assert rungs(find_search(params, "study"), 54) == (Rung(54, 150),)


def test_halving_needs_an_eighth_of_grid_epochs() -> None:
    params = Params.read(ROOT / "params.yaml")
    halving = find_search(params, "halving")
    assert hyperparameter_sets(halving, params.seed) == hyperparameter_sets(find_search(params, "study"), params.seed)
    steps = rungs(halving, 54)
    assert steps == (Rung(54, 5), Rung(18, 15), Rung(6, 45), Rung(2, 135), Rung(1, 150))
    # by hand: 54 × 5 + 18 × 10 + 6 × 30 + 2 × 90 + 1 × 15
    assert total_epochs(steps) == 825 < 54 * 150 / 8


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(1, 40),
    st.integers(2, 5),
    st.sampled_from(["grid", "halving"]),
)
def test_rungs_have_fewer_trials_and_more_epochs(
    trials: int, epochs: int, first: int, factor: int, method: str
) -> None:
    steps = rungs(search(epochs=epochs, first_epochs=first, factor=factor, method=method), trials)
    assert steps[0].trials == trials
    assert steps[-1].epochs == epochs
    for before, after in pairwise(steps):
        assert before.epochs < after.epochs
        assert after.trials <= before.trials <= factor * after.trials
    assert 0 < total_epochs(steps) <= trials * epochs


def test_sample_of_trials_is_reproducible_by_seed() -> None:
    wide = {"filters": [16, 32, 64], "batch_size": [8, 16, 32, 64]}
    everything = hyperparameter_sets(search(**wide), 1)
    drawn = hyperparameter_sets(search(**wide, trials=5), 1)
    assert len(everything) == 12
    assert [one for one in everything if one in drawn] == list(drawn)
    assert len(drawn) == 5
    assert drawn == hyperparameter_sets(search(**wide, trials=5), 1) != hyperparameter_sets(search(**wide, trials=5), 2)
    assert hyperparameter_sets(search(**wide, trials=50), 1) == everything


def test_search_repeats_each_combination_with_each_seed() -> None:
    trials = hyperparameter_sets(search(seeds=[3, 4], batch_size=[8, 16]), 1)
    assert [(trial.batch_size, trial.training_seed) for trial in trials] == [(8, 3), (8, 4), (16, 3), (16, 4)]
    assert len({trial.name for trial in trials}) == 4
    assert hyperparameter_sets(search(), 1)[0].training_seed is None


def test_survivors_have_highest_f1_in_original_order() -> None:
    assert survivors("abcde", [0.1, 0.5, 0.3, 0.5, 0.2], 3) == ("b", "c", "d")
    assert survivors("abc", [0.5, 0.5, 0.5], 2) == ("a", "b")
    assert survivors("ab", [0.0, 0.1], 5) == ("a", "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filters": []}, "filters"),
        ({"filters": [0]}, "filters"),
        ({"learning_rate": [-1e-3]}, "learning_rate"),
        ({"batch_size": [8, 8]}, "batch_size contains a value twice: 8, 8"),
        ({"epochs": 0}, "epochs"),
        ({"patience": 0}, "patience"),
        ({"method": "random"}, "method"),
        ({"method": "halving", "factor": 1}, "factor"),
        ({"trials": 0}, "trials"),
        ({"seeds": [-1]}, "seeds"),
        ({"failures": -1}, "failures"),
    ],
)
def test_invalid_search_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError):
        search(**changes)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["searches"]["demo"] |= changes
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError, match=message) as error:
        Params.read(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)
    assert "searches.demo" in str(error.value)
