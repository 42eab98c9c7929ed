"""HTTP service that maps rasters through OGC API – Processes."""
