"""Tests of deferred and repeated Ctrl-C, and of suppressed stderr."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from talud.cli.main import _resend_dropped_interrupt
from talud.process import defer_sigint, stderr_suppressed
from talud.registry.connection import translated_errors


@pytest.mark.parametrize("block", [defer_sigint, translated_errors])
def test_first_ctrl_c_is_deferred_to_the_end_of_the_block(block) -> None:
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


def test_second_ctrl_c_interrupts_the_block() -> None:
    done = []

    def work() -> None:
        with defer_sigint():
            signal.raise_signal(signal.SIGINT)
            done.append("after the first")
            signal.raise_signal(signal.SIGINT)
            done.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["after the first"]


@pytest.mark.parametrize("imported", ["typer", "numpy", "onnxruntime"])
def test_ctrl_c_during_import_ends_the_command_silently(imported: str) -> None:
    code = f"""
import signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {imported!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = ["talud", "predict", "none.onnx", "none.tif", "--out", "none"]
from talud.cli.main import main
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_in_a_finaliser_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    missed: list[str] = []
    later = threading.Timer(8, missed.append, ["it waited to the end"])

    class Finalised:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def work() -> None:
        Finalised()
        time.sleep(10)

    monkeypatch.setattr(sys, "unraisablehook", _resend_dropped_interrupt)
    later.start()
    with pytest.raises(KeyboardInterrupt):
        work()
    later.cancel()
    assert missed == []


def test_overlapping_blocks_restore_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    first, second = stderr_suppressed(), stderr_suppressed()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    os.write(2, b"held back")
    second.__exit__(None, None, None)
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
