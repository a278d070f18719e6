"""Proof that answers are right: comparison by value range, and bisection to the pass or node that changed them."""
