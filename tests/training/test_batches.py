"""Tests of training batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talud.data.patches import Patches
from talud.params import Augmentation
from talud.training.augmentation import SYMMETRIES, Augmenter, apply_symmetry
from talud.training.batches import TrainingBatches, balanced_order


def numbered_patches(count: int, side: int = 4) -> Patches:
    """Return distinct patches whose mask equals their first band."""
    values = np.arange(count * side * side).reshape(count, side, side)
    return Patches(np.stack([values, -values], axis=-1).astype(np.float32), values.astype(np.uint8))


def augmenter(bands: int = 2, **options: bool) -> Augmenter:
    names = tuple(f"band_{number}" for number in range(bands))
    return Augmenter.of(Augmentation(**options), names, np.zeros(bands), np.ones(bands))


def test_symmetries_form_the_dihedral_group() -> None:
    square = np.arange(9).reshape(3, 3)
    images = {apply_symmetry(square, symmetry).tobytes() for symmetry in range(SYMMETRIES)}
    assert len(images) == 8
    for first in range(SYMMETRIES):  # a group: two symmetries in sequence are again a symmetry
        for second in range(SYMMETRIES):
            assert apply_symmetry(apply_symmetry(square, first), second).tobytes() in images


def test_epoch_has_every_patch_once_with_its_truth() -> None:
    patches = numbered_patches(11)
    patches.stack[3, 0, 1, 1] = np.nan
    batches = TrainingBatches(patches, 4, augmenter=augmenter(), seed=1)
    orders = []
    for _ in range(3):
        pairs = [batches[index] for index in range(len(batches))]
        assert [len(stack) for stack, _ in pairs] == [4, 4, 3]
        stack = np.concatenate([stack for stack, _ in pairs])
        truth = np.concatenate([truth for _, truth in pairs])
        assert truth.shape == (11, 4, 4, 1)
        np.testing.assert_array_equal(stack[..., 0], truth[..., 0])  # turned the same way
        assert np.argwhere(np.isnan(stack)).shape == (1, 4)
        assert sorted(stack[..., 0].ravel()) == list(range(11 * 16))
        orders.append(stack[..., 0].tobytes())
        batches.on_epoch_end()
    assert orders[0] == orders[1]  # `fit` ends an epoch before the first one
    assert orders[1] != orders[2]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 2**32))
def test_balanced_epoch_draws_equally_from_each_area(sizes: list[int], seed: int) -> None:
    order = balanced_order(sizes, np.random.default_rng(seed))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    each = -(-sum(sizes) // len(sizes))
    assert np.bincount(owner[order], minlength=len(sizes)).tolist() == [each] * len(sizes)
    times = np.bincount(order, minlength=sum(sizes))
    for area, size in enumerate(sizes):
        assert set(times[owner == area]) <= {each // size, -(-each // size)}


def test_balanced_batches_resume_at_an_epoch() -> None:
    numbered = numbered_patches(13)
    patches = Patches(numbered.stack, numbered.mask, (10, 0, 3))

    def epochs(first: int, last: int) -> list[list[int]]:
        batches = TrainingBatches(patches, 4, augmenter=augmenter(), seed=7, first_epoch=first, balanced=True)
        found = []
        for _ in range(first, last):
            batches.on_epoch_end()
            stack = np.concatenate([batches[index][0] for index in range(len(batches))])
            found.append((stack[..., 0].max(axis=(1, 2)).astype(int) // 16).tolist())
        return found

    whole = epochs(0, 4)
    assert epochs(2, 4) == whole[2:]
    assert len({tuple(order) for order in whole}) == 4
    for order in whole:
        assert sum(number < 10 for number in order) == sum(number >= 10 for number in order) == 7
        assert len({number for number in order if number < 10}) == 7
        assert sorted(np.bincount(order, minlength=13)[10:]) == [2, 2, 3]


def test_batches_without_augmentation_keep_patches() -> None:
    patches = numbered_patches(9)
    for stack, _ in (TrainingBatches(patches, 9, augmenter=augmenter(symmetries=False), seed=3)[0],):
        for one in stack:
            number = int(one[0, 0, 0]) // 16
            np.testing.assert_array_equal(one, patches.stack[number])


def test_batches_are_reproducible_by_seed() -> None:
    def first(seed: int) -> bytes:
        return TrainingBatches(numbered_patches(30), 30, augmenter=augmenter(), seed=seed)[0][0].tobytes()

    assert first(1) == first(1) != first(2)


EPOCHS = """
import json
import keras
import numpy as np
from talud.data.patches import Patches
from talud.params import Augmentation
from talud.training.augmentation import Augmenter
from talud.training.batches import TrainingBatches

def augmenter():
    return Augmenter.of(Augmentation(), ("red",), np.zeros(1), np.ones(1))

class RecordedBatches(TrainingBatches):
    seen = []
    def __getitem__(self, index):
        stack, truth = super().__getitem__(index)
        self.seen.append((index, tuple(stack[:, :, :, 0].ravel().tolist())))
        return stack, truth

def fit_epochs(first, size):
    model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Conv2D(1, 1)])
    model.compile("sgd", loss="mse", metrics=["mse"])
    batches, epochs = RecordedBatches(patches, size, augmenter=augmenter(), seed=4, first_epoch=first), []
    note = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: batches.seen.clear(),
        on_epoch_end=lambda epoch, logs: epochs.append(sorted(set(batches.seen))),
    )
    model.fit(batches, initial_epoch=first, epochs=3, shuffle=False, verbose=0, callbacks=[note])
    return [[values for _, values in epoch] for epoch in epochs]

values = np.arange(5 * 4).reshape(5, 2, 2)
patches = Patches(values[..., np.newaxis].astype(np.float32), (values % 2).astype(np.uint8))
print(json.dumps([fit_epochs(first, size) for size in (2, 5) for first in (0, 1)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_fit_epoch_depends_only_on_its_number_and_seed(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    if backend == keras.backend.backend():
        exec(EPOCHS, {"__name__": "epochs"})
        printed = capsys.readouterr().out
    else:
        environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-W", "ignore", "-c", EPOCHS]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        printed = result.stdout
    runs = iter(json.loads(printed.splitlines()[-1]))
    values = np.arange(5 * 4).reshape(5, 2, 2)
    patches = Patches(values[..., np.newaxis].astype(np.float32), (values % 2).astype(np.uint8))
    for size in (2, 5):
        whole, resumed = next(runs), next(runs)
        assert whole[1:] == resumed
        for epoch, seen in enumerate(whole):
            batches = TrainingBatches(patches, size, augmenter=augmenter(1), seed=4, first_epoch=epoch)
            assert seen == [batches[index][0].ravel().tolist() for index in range(len(batches))]
        assert len({str(seen) for seen in whole}) == 3
