"""Fast, trustworthy sampling of score-based diffusion models.

`import scoreline` is instant: a public name is imported, with PyTorch, when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.17.0"

_MODULES = {
    "scoreline.interface.sample_function": "sample Step",
    "scoreline.sampling": "Stepper integrate trajectory count_calls",
    "scoreline.checkpoints": "load_model Checkpoint save_model Card",
    "scoreline.denoiser": "Denoiser",
    "scoreline.verification.certification": "certify Certificate",
    "scoreline.networks.uncertainty": "Uncertainty",
    "scoreline.verification.optimal_loss": "optimal_losses",
    "scoreline.networks.exact": "GaussianMixture FullGaussianMixture",
    "scoreline.errors": "InputError",
    "scoreline.records": "Record load_record",
    "scoreline.calibration": "calibrate",
    "scoreline.calibration.subject": "Subject",
    "scoreline.calibration.data_deviation": "measure_sigma_data",
    "scoreline.calibration.score_norm": "ScoreNorm",
    "scoreline.calibration.score_scale": "ScoreScale load_scale",
    "scoreline.calibration.score_optimal": "CumulativeLength",
    "scoreline.calibration.search": "Search load_recommendation",
    "scoreline.calibration.learned.gits": "GITS",
    "scoreline.calibration.learned.learned_tableau": "LearnedTableau",
    "scoreline.calibration.target_variance": "TargetVariance",
    "scoreline.schedules.base": "Schedule NoiseSchedule grid VariancePreserving",
    "scoreline.schedules.spacings": "Polynomial Blend Power LogSNR NSRLog",
    "scoreline.schedules.score_optimal": "ScoreOptimal load_schedule",
    "scoreline.schedules.tabulated": "Tabulated",
    "scoreline.schedules.integer_times": "IntegerTimes",
    "scoreline.schedules.deis_sn_times": "DEISSNTimes",
    "scoreline.schedules.vp": "LinearVP CosineVP",
    "scoreline.schedules.sub_vp": "SubVP",
    "scoreline.schedules.flow": "RectifiedFlow flow_shift",
    "scoreline.schedules.ve": "VE EDM",
    "scoreline.schedules.discrete": "DiscreteVP",
    "scoreline.parameterisations": (
        "NoisePrediction VelocityPrediction FlowVelocity DataPrediction ScorePrediction VarianceExploding IDDPM "
        "EDMPreconditioning Parameterisation"
    ),
    "scoreline.solvers.tableau": "Solver Tableau build_tableau denoise_last",
    "scoreline.solvers.rows": "Rows",
    "scoreline.solvers.frames": "Velocity Flow",
    "scoreline.solvers.ddim": "DDIM",
    "scoreline.solvers.deis": "DEIS Scale",
    "scoreline.solvers.rho_ab": "RhoAB",
    "scoreline.solvers.ipndm": "IPNDM",
    "scoreline.solvers.runge_kutta": "RungeKutta heun",
    "scoreline.solvers.dpm_solver": "DPMSolver",
    "scoreline.solvers.dpm_multistep": "DPMMultistep",
    "scoreline.solvers.dpm_sde": "DPMSDE2M",
    "scoreline.solvers.unipc": "UniPC",
    "scoreline.solvers.scire": "SciRE",
    "scoreline.solvers.scire_exponential": "SciREExponential",
    "scoreline.solvers.scire_multistep": "SciREMultistep",
    "scoreline.solvers.edm": "EDMHeun",
    "scoreline.solvers.ancestral": "EulerAncestral",
    "scoreline.solvers.adaptive": "Adaptive",
    "scoreline.solvers.learned": "Learned load_learned",
    "scoreline.datasets.base": "ImageDataset ArrayDataset",
    "scoreline.metrics.base": "Metrics Score",
    "scoreline.likelihood": "log_likelihood LogLikelihood dequantise bits_per_dim",
    "scoreline.objective": (
        "Batch DenoisingObjective EDMWeight FlowWeight InverseVariance MinSNR LogNormal UniformTime UniformLevels"
    ),
    "scoreline.targets": "Denoising StableTarget StableVM posterior_mean posterior_weights",
    "scoreline.training.ema": "EMA PowerFunctionEMA",
    "scoreline.metrics.inception": "Inception",
    "scoreline.metrics.fidelity": "Fidelity",
    "scoreline.metrics.frechet": "GaussianStatistics frechet_distance",
    "scoreline.metrics.kid": "kernel_distance",
    "scoreline.metrics.sliced_wasserstein": "sliced_wasserstein_distance",
    "scoreline.metrics.inception_score": "inception_score",
    "scoreline.metrics.modular_metrics": (
        "FrechetDistance KernelDistance PrecisionRecall SlicedWasserstein InceptionScore"
    ),
    "scoreline.metrics.error_bar_metric": "ErrorBarMetric",
    "scoreline.training.loss_by_level": "LossByLevel",
    "scoreline.guidance": "ClassifierFree Autoguidance",
    "scoreline.thresholding": "Clip DynamicThreshold",
    "scoreline.execution": "Execution",
    "scoreline.interface": "predictions",
    "scoreline.interface.named_choices": "solver_named schedule_named",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import the public object of this name on first use, and keep it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOMES[name])
    value = globals()[name] = getattr(home, name) if hasattr(home, name) else import_module(f"{home.__name__}.{name}")
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
