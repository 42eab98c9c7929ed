"""Variants of a model in reduced precision (int8, float16)."""
