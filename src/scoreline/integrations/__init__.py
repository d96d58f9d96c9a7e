"""Solvers for the sampling loops of other programs."""
