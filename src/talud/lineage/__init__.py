"""Lineage: the origin of maps and models, and the maps made with a model."""
