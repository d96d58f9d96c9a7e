"""Fast, trustworthy sampling of score-based diffusion models."""

__version__ = "0.1.0"
