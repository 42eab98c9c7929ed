"""Lineage of maps and models."""
