"""How callbacks find each other."""

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

Kind = TypeVar("Kind", bound=Callback)


def the_callback(trainer: Trainer, kind: type[Kind]) -> Kind:
    """The trainer's only callback of a kind.

    Raises:
        ValueError: if it has none or several.
    """
    found = [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]
    if len(found) != 1:
        raise ValueError(f"one {kind.__name__} is needed, found {len(found)}")
    return found[0]
