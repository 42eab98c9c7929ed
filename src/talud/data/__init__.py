"""Preparation of data: stacks, masks and patches from rasters and inventories."""
