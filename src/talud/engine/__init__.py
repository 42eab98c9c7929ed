"""Exact tiled inference: a model and an array in, an array out."""
