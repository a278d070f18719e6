"""Random generated kernels, called on random arguments in memory with guard pages and poison: see `__main__`."""
