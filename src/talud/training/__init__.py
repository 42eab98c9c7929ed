"""From patches to trials, studies, and an ONNX file that carries its contract."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from talud.process import defer_sigint, stderr_suppressed

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow has oneDNN's convolutions in any case, and by itself takes them only where a processor has AVX512-VNNI.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# Keras and TensorFlow import these where they are installed, for features that talud does not use: half of the time.
_UNUSED = ("jax", "matplotlib", "sklearn")


def _backend() -> str | None:
    """Return the backend that the environment or Keras's own settings ask for, None if neither does."""
    if asked := os.environ.get("KERAS_BACKEND"):
        return asked
    settings = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
    with suppress(OSError, ValueError, AttributeError):
        return str(json.loads(settings.read_text(encoding="utf-8")).get("backend"))
    return None


@contextmanager
def _without_unused_packages() -> Iterator[None]:
    """Let imports of unused packages fail, as where they are not installed."""
    hidden = [name for name in _UNUSED if name not in sys.modules and name != _backend()]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: Python's sign for "not to be imported"
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


# TensorFlow greets before its own log level counts, so its first import is done here, in silence.
with stderr_suppressed(), defer_sigint(), _without_unused_packages():
    import keras as _keras  # noqa: F401
