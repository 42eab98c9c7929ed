"""From patches to trials, studies, and an ONNX file that carries its contract."""
