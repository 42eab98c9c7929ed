"""From patches to trials, studies, and an ONNX file that carries its contract."""

from __future__ import annotations

import os

from talud.terminal import hushed, unbroken

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow has oneDNN's convolutions in any case, and by itself takes them only where a processor has AVX512-VNNI.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# TensorFlow greets before its own log level counts, so its first import is done here, in silence.
with hushed(), unbroken():
    import keras as _keras  # noqa: F401
