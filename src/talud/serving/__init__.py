"""The service: an agency runs registered models over its rasters through OGC API – Processes, and reviews the maps."""
