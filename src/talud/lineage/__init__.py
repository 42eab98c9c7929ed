"""Where a map or a model came from, and what was made with it."""
