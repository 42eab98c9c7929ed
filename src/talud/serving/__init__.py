"""A service that maps rasters through OGC API – Processes and stores reviews."""
