"""Training: the plain phase, then the SAGA cycle."""
