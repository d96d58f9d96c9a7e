"""torchmetrics' metric with the standard error of its value beside it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import plot_single_or_multi_val


class ErrorBarMetric(Metric, ABC):
    """A `torchmetrics.Metric` whose `error` is the standard error of what `compute` returns.

    When to use it: derive from it for a metric of your own in a Lightning module; `Metrics` is the interface of
    `metrics=NAME`.

    Args:
        settings: those of every `torchmetrics.Metric`, such as sync_on_compute.
    """

    full_state_update = False
    is_differentiable = False
    plot_lower_bound: float | None = None
    plot_upper_bound: float | None = None

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)

    @abstractmethod
    def error(self) -> Any:
        """Return the standard error of `compute`, over all processes, in its shape."""

    def everywhere(self) -> AbstractContextManager[None]:
        """Return a context in which the states are those of all processes, as they are in `compute`."""
        context: AbstractContextManager[None] = self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute
        )
        return context

    def plot(self, val: Any = None, ax: Any = None) -> tuple[Any, Any]:
        """Plot the value of `compute` with its error bars, or given values.

        Args:
            val: a value that `compute` returned, or a sequence of them; by default the current one.
            ax: axes of matplotlib; by default a new figure.

        Returns:
            the new figure, None if there are axes; and the axes.
        """
        axes: Any
        figure, axes = plot_single_or_multi_val(
            self.compute() if val is None else val,
            ax=ax,
            higher_is_better=self.higher_is_better,
            name=type(self).__name__,
            lower_bound=self.plot_lower_bound,
            upper_bound=self.plot_upper_bound,
        )
        if val is None:
            for place, (value, error) in enumerate(zip(_numbers(self.compute()), _numbers(self.error()), strict=True)):
                axes.errorbar(place, value, error, color="black", capsize=3)
        return figure, axes


def _numbers(value: Tensor | dict[str, Tensor]) -> Sequence[float]:
    return [float(number) for number in (value.values() if isinstance(value, dict) else [value])]
