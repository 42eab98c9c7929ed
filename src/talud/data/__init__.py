"""From source rasters and inventories to stacks, masks and patches."""
