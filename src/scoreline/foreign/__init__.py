"""Checkpoints of other projects: read without running their code, and translated into models of this package."""
