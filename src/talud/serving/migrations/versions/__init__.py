"""The layouts of the service's database, in the order of their revisions."""
