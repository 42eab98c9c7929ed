"""Changes to the layout of the service's database, one module each under versions."""
