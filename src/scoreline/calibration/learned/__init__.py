"""Learned tableaus: nodes and weights fitted to a model's own fine runs."""
