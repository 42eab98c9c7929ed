"""Variants of a trained model in reduced precision: smaller, faster, and measured against the float32 file."""
