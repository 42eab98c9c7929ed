"""Mapping of rasters: the tiles of a raster, finished in this process or by workers."""
