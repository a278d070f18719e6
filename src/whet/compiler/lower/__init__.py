"""Lowering rules: one file per family of operators, and the table that lists them."""
