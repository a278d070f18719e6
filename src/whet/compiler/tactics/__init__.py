"""Ways to do the same work: which are legal for given extents, and what each is likely to take."""
