"""Checkpoints of other projects: read without running any of their code, and translated into ours."""
