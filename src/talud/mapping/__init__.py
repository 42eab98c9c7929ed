"""Mapping of rasters by tiles."""
