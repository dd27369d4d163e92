"""Nested Laplace: rows at their modes given the globals, and the globals at the mode of what is left."""
