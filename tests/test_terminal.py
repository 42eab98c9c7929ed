"""Ctrl-C, held back where it would do harm and heard where Python would drop it."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from talud.cli.main import _unraisable
from talud.registry.store import speaking
from talud.terminal import unbroken


@pytest.mark.parametrize("block", [unbroken, speaking])
def test_the_first_ctrl_c_waits_for_the_end_of_the_block(block) -> None:
    done = []

    def work() -> None:
        with block(), block():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest of the block")
        done.append("what follows")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the rest of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_breaks_the_block() -> None:
    done = []

    def work() -> None:
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            done.append("after the first")
            signal.raise_signal(signal.SIGINT)
            done.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["after the first"]


def test_a_ctrl_c_that_falls_into_a_finaliser_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finalised:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def work() -> None:
        Finalised()
        time.sleep(10)

    monkeypatch.setattr(sys, "unraisablehook", _unraisable)
    with pytest.raises(KeyboardInterrupt):
        work()
