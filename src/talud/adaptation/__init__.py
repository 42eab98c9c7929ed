"""Adaptation of a model to an area without labels."""
