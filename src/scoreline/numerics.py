"""Which numbers this version of the package computes."""

NUMERICS_VERSION = 1
"""Raised by hand when images, weights or measurements change for the same configuration; see tests/test_numerics.py.

Runs of another number are other runs. Sources that change without changing numbers leave it as it is."""
