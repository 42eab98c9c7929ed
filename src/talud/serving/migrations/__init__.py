"""Migrations of the service's database, one module each under versions."""
