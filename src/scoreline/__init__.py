"""Fast, trustworthy sampling of score-based diffusion models."""

from typing import Any

__version__ = "0.8.0"
__all__ = ["__version__", "sample"]


def __getattr__(name: str) -> Any:
    """`scoreline.sample`, imported with torch when it is first asked for: `import scoreline` stays instant."""
    if name == "sample":
        from scoreline.sampling import sample

        return sample
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
