"""Measurements of a trained model as small files that are bound to its checkpoint."""
