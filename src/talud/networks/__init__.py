"""Keras networks: architectures, conversion to ONNX, and back."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from talud.process import defer_sigint, stderr_suppressed

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow always includes oneDNN's convolutions, but by default uses them only on CPUs with AVX512-VNNI.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# Keras and TensorFlow import these packages if they are installed, for features that talud does not use. That takes
# half of their import time.
_UNUSED = ("jax", "matplotlib", "sklearn")


def _backend() -> str | None:
    """Return the Keras backend of the environment or keras.json, or None."""
    if backend := os.environ.get("KERAS_BACKEND"):
        return backend
    settings = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
    with suppress(OSError, ValueError, AttributeError):
        return str(json.loads(settings.read_text(encoding="utf-8")).get("backend"))
    return None


@contextmanager
def _without_unused_packages() -> Iterator[None]:
    """Make imports of unused packages fail."""
    hidden = [name for name in _UNUSED if name not in sys.modules and name != _backend()]
    # An entry of None makes Python raise ImportError.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


# TensorFlow logs before it reads its log level, so it is imported here first, with stderr suppressed.
with stderr_suppressed(), defer_sigint(), _without_unused_packages():
    import keras as _keras  # noqa: F401
