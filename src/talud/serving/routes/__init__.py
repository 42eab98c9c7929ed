"""Routes of the service, by subject."""
