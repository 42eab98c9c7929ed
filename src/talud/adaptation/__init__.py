"""A model made to see a new area as it saw its training areas; no label is needed."""
