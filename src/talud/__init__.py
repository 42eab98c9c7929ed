"""talud: U-Nets that map landslides, from versioned satellite stacks to a registered model and a map."""
