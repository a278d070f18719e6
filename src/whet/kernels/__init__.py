"""Generators of machine code for single computations. They know shapes and types, and nothing of graphs."""
