"""Exact tiled inference with ONNX models on arrays."""
