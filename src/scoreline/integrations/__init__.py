"""Adapters of this package's solvers for other programs."""
