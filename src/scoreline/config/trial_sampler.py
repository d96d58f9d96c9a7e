"""The sampler of a study by Optuna whose draws do not depend on restarts."""

import hashlib
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial


class TrialSampler(BaseSampler):
    """Tree-structured Parzen estimators whose draws for trial k depend on (seed, k, parameter) and finished trials.

    Optuna's samplers hold one random generator: a study that starts again with the same seed repeats the draws of its
    first trials. Here each parameter of each trial has a generator of its own, so a study that was killed and resumed
    draws what it would have drawn otherwise. Use it wherever a study may be interrupted.

    Args:
        seed: of all draws.
        options: those of `optuna.samplers.TPESampler`.

    Source: Bergstra, Bardenet, Bengio, Kegl, *Algorithms for Hyper-Parameter Optimization*, NeurIPS 2011 (section 4).
    """

    def __init__(self, seed: int = 0, **options: Any) -> None:
        self.seed, self.options = seed, options

    def _sampler(self, trial: FrozenTrial, name: str = "") -> TPESampler:
        digest = hashlib.sha256(f"{self.seed}/{trial.number}/{name}".encode()).digest()
        return TPESampler(seed=int.from_bytes(digest[:4], "big"), **self.options)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn jointly: none unless `multivariate`."""
        return self._sampler(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the parameters that are drawn jointly."""
        return self._sampler(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter."""
        return self._sampler(trial, param_name).sample_independent(study, trial, param_name, param_distribution)
