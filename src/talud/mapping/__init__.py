"""Mapping of rasters by tiles, in this process or on workers."""
