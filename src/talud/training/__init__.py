"""Training of networks: trials, studies, fine-tuning and export to ONNX."""

# Keras is imported there, without messages and unused packages, before any module of this package imports it.
import talud.networks  # noqa: F401
