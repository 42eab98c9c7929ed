"""From an ONNX file and a raster to a map: exact tiles, ONNX Runtime, and the products of a map."""
