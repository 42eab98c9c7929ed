"""From patches to trials, studies, and an ONNX file that carries its contract."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_DETERMINISTIC_OPS", "1")  # one seed, one result, on a GPU too


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hold back what C++ code writes to the terminal; a Python error still shows, after the block."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with Path(os.devnull).open("w") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


# TensorFlow greets before its own log level counts, so its first import is done here, in silence.
with _silent_stderr():
    import keras as _keras  # noqa: F401
