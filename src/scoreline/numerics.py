"""Which numbers this code makes."""

NUMERICS_VERSION = 1
"""Raised by hand when numbers change: when images, weights or measurements of one configuration come out different.

It stands for the code in the identity of runs, so that a comment or a new command leaves finished runs what they are.
What rounds differently on another processor is no change, neither is a faster kernel. tests/test_numerics.py compares
golden numbers and says when it has to be raised.
"""
