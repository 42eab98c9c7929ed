"""Unsupervised adaptation of a model to a new area."""
