"""Files of a map."""
