"""extended."""
