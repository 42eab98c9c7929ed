"""Files of a map: rasters, polygons, statistics, pictures and the record."""
