"""Finished runs as tables and figures: those of a sweep by Hydra, and those that a file of conf/table asks for."""
