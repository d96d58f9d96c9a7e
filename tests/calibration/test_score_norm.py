import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoreline.calibration.score_norm import ScoreNorm, median
from scoreline.calibration.score_norm_plot import _clipped, _title, plot
from scoreline.calibration.score_scale import ScoreScale, load_scale
from scoreline.calibration.subject import Subject
from scoreline.config.run_names import record_beside
from scoreline.datasets.base import ArrayDataset
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.parameterisations import VarianceExploding
from scoreline.records import Record, load_record
from scoreline.runtime.seeded_noise import normal
from scoreline.sampling import trajectory
from scoreline.schedules.base import NoiseSchedule, grid
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.spacings import Power
from scoreline.schedules.ve import EDM, VE
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.deis import DEIS
from scoreline.solvers.runge_kutta import heun

C = 0.5
SHAPE = (1, 4, 4)


class GaussianNetwork(nn.Module):
    """Exact for N(0, c^2 I): in VE form F = -eps = -rho x / (c^2 + rho^2), with ln(rho / 2) as label."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        rho = (2 * noise.double().exp()).reshape(-1, 1, 1, 1)
        return -rho * x / (C**2 + rho**2)


def measure(count: int, nfe: int = 60, batch: int = 64) -> dict[str, Tensor]:
    table = DEIS(2, Power(1))(Power(7), 40.0, 0.01, nfe)
    return ScoreNorm()(Subject(Denoiser(GaussianNetwork(), VarianceExploding()), table, SHAPE, range(count), batch))


def test_score_norm_of_a_gaussian_is_closed_form() -> None:
    """Started from N(0, s^2), x stays Gaussian: mean |eps| = sqrt(2/pi) rho s sqrt(V / V_0) / V, V = c^2 + rho^2."""
    values = measure(count=400, nfe=300)
    variance = C**2 + values["rho"] ** 2
    first = normal(range(400), SHAPE, "initial").double().abs().mean() * 40
    exact = values["rho"] * first / (variance * variance[-1]).sqrt()
    torch.testing.assert_close(values["mean_abs_eps"], exact, rtol=2e-4, atol=0)
    limit = (2 / torch.pi) ** 0.5 * values["rho"] / variance.sqrt() * 40 / float(variance[-1]) ** 0.5
    assert float(((values["mean_abs_eps"] - limit) / values["standard_error"]).abs().max()) < 4


def test_statistics_do_not_depend_on_the_batch_size() -> None:
    small, large = measure(50, batch=7), measure(50, batch=50)
    for name, value in small.items():
        torch.testing.assert_close(value, large[name], rtol=1e-6, atol=1e-9)
    ratio = measure(50)["standard_error"] / measure(800)["standard_error"]
    assert float(ratio.mean()) == pytest.approx(4.0, rel=0.25)


def test_refuses_what_cannot_be_measured() -> None:
    denoiser = Denoiser(GaussianNetwork(), VarianceExploding())
    with pytest.raises(InputError, match="two images"):
        ScoreNorm()(Subject(denoiser, DEIS(0, Power(1))(Power(7), 40, 0.01, 5), SHAPE, [3], 1))
    with pytest.raises(InputError, match="strictly decreasing"):
        ScoreNorm()(Subject(denoiser, heun()(Power(7), 40, 0.01, 6), SHAPE, [3, 4], 2))


class UnevenNetwork(GaussianNetwork):
    """As `GaussianNetwork` with c = 0.3, 0.5, 2 for the three channels; remembers what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.returned: list[Tensor] = []

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        rho = (2 * noise.double().exp()).reshape(-1, 1, 1, 1)
        c = torch.tensor([0.3, 0.5, 2.0], dtype=torch.float64).reshape(1, 3, 1, 1)
        self.returned.append(-rho * x / (c**2 + rho**2))
        return self.returned[-1]


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize("count", [30, 31])
def test_statistics_and_channels_as_numpy_has_them(statistic: str, count: int) -> None:
    network, table = UnevenNetwork(), DEIS(2, Power(1))(Power(7), 40.0, 0.01, 6)
    denoiser = Denoiser(network, VarianceExploding())
    values = ScoreNorm(statistic, per_channel=True)(Subject(denoiser, table, (3, 4, 4), range(count), 64))
    eps = np.abs(torch.stack(network.returned).flip(0).numpy())  # rho increasing, images, channels, 4, 4
    centre = {"mean": np.mean, "median": np.median}[statistic]
    assert values["mean_abs_eps"].numpy() == pytest.approx(centre(eps.mean((2, 3, 4)), axis=1), rel=1e-5)
    assert values["mean_abs_eps_by_channel"].numpy() == pytest.approx(centre(eps.mean((3, 4)), axis=1), rel=1e-5)
    assert values["mean_abs_eps_by_channel"].shape == values["standard_error_by_channel"].shape == (6, 3)
    batched = ScoreNorm(statistic, per_channel=True)(Subject(denoiser, table, (3, 4, 4), range(count), 7))
    plain = ScoreNorm(statistic)(Subject(denoiser, table, (3, 4, 4), range(count), 64))
    assert list(plain) == ["rho", "mean_abs_eps", "standard_error", "second_moments", "second_moments_covariance"]
    for name, value in values.items():
        torch.testing.assert_close(batched[name], value, rtol=1e-6, atol=1e-9)
        assert torch.equal(plain.get(name, value), value)
    if statistic == "mean":
        error = eps.mean((3, 4)).std(axis=1, ddof=1) / count**0.5
        assert values["standard_error_by_channel"].numpy() == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("count", [3, 5])
def test_median_error_is_that_of_all_resamples(count: int) -> None:
    per_image = torch.randn(4, count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    resamples = np.array(list(itertools.product(range(count), repeat=count)))
    expected = np.median(per_image.numpy()[:, resamples], axis=-1).std(axis=-1)
    centre, error = median(per_image)
    assert centre.numpy() == pytest.approx(np.median(per_image.numpy(), axis=-1), rel=1e-14)
    assert error.numpy() == pytest.approx(expected, rel=1e-12)


def test_median_error_of_even_or_many_images() -> None:
    """Against 20000 resamples at n = 100, and sqrt(pi / 2n), the asymptote of normal variables, at n = 40000."""
    per_image = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    resamples = np.random.default_rng(3).integers(0, 100, (20_000, 100))
    expected = np.median(per_image.numpy()[resamples], axis=-1).std()
    assert float(median(per_image)[1]) == pytest.approx(float(expected), rel=0.05)
    many = torch.randn(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert float(median(many)[1]) == pytest.approx((torch.pi / 80_000) ** 0.5, rel=0.1)


def test_refuses_another_statistic() -> None:
    with pytest.raises(InputError, match=r"calibration\.statistic=meadian.*'median'"):
        ScoreNorm("meadian")
    with pytest.raises(InputError, match=r"calibration\.per_channel=1: must be true or false"):
        ScoreNorm(per_channel=1)  # type: ignore[arg-type]


def test_score_norm_is_the_released_formula() -> None:
    """R = sigma mean |s_hat| over batch, channels and pixels, s_hat = -eps_hat / sigma, at the states of the run."""
    network, run = UnevenNetwork(), DEIS(2, Power(1))(Power(7), 40.0, 0.01, 12)
    denoiser = Denoiser(network, VarianceExploding())
    values = ScoreNorm()(Subject(denoiser, run, (3, 4, 4), range(30), 7))
    states = [normal(range(30), (3, 4, 4), "initial") * 40]
    states += [state.x for state in trajectory(denoiser.eps, states[0], run)]
    published = []
    for x, rho in list(zip(states, run.rho.tolist(), strict=True))[:-1]:
        sigma = rho / (1 + rho**2) ** 0.5
        score = -denoiser.eps(x, rho).double() / sigma
        published.append(sigma * float(score.abs().mean()))
    assert values["mean_abs_eps"].flip(0).tolist() == pytest.approx(published, rel=1e-12)


def noisy_data(count: int = 3000, labels: Tensor | None = None) -> ArrayDataset:
    """Pixels N(0, 0.25^2) in [-1, 1], rounded to bytes."""
    pixels = 0.25 * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))
    return ArrayDataset("toy", (127.5 * (pixels + 1)).round().clamp(0, 255).to(torch.uint8), labels, 3)


class LabelledNetwork(GaussianNetwork):
    """Exact for N(0, 0.25^2 I); remembers the labels and states that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        rho = (2 * noise.double().exp()).reshape(-1, 1, 1, 1)
        self.given.append((x, label))
        return -rho * x / (0.25**2 + rho**2)


def noised(count: int, data: ArrayDataset | None, nfe: int = 20) -> Subject:
    denoiser = Denoiser(LabelledNetwork(), VarianceExploding())
    return Subject(denoiser, DEIS(2, Power(1))(Power(7), 40.0, 0.01, nfe), SHAPE, range(count), 64, data=data)


def test_noised_states_of_a_gaussian_are_closed_form() -> None:
    """x ~ N(0, c^2 + rho^2), hence mean |eps| = sqrt(2/pi) rho / sqrt(c^2 + rho^2)."""
    values = ScoreNorm(states="noised")(noised(2000, noisy_data()))
    rho = values["rho"]
    exact = (2 / torch.pi) ** 0.5 * rho / (0.25**2 + rho**2).sqrt()
    assert float(((values["mean_abs_eps"] - exact) / values["standard_error"]).abs().max()) < 4
    assert float((values["standard_error"] / exact).max()) < 0.006
    ratio = values["mean_abs_eps"][-5:] / values["mean_abs_eps"][-1]
    torch.testing.assert_close(ratio, exact[-5:] / exact[-1], rtol=1e-3, atol=0)


def test_noised_states_follow_seeds_and_labels() -> None:
    labels = torch.arange(3000) % 3
    data, one = noisy_data(labels=labels), noised(30, None)
    conditional = replace(one, data=data, labels=torch.zeros(30, dtype=torch.int64), batch_size=7)
    ScoreNorm(states="noised")(conditional)
    network = one.denoiser.network
    (first, given), (second, _) = network.given[0], network.given[1]
    level = one.run.rho.tolist()
    clean = (first * level[1] - second * level[0]) / (level[1] - level[0])
    chosen = [(data.images.float() / 127.5 - 1 - image).abs().amax((1, 2, 3)).argmin() for image in clean]
    assert given.tolist() == [int(labels[index]) for index in chosen]
    assert len(set(map(int, chosen))) == 7
    fewer = replace(conditional, seeds=range(3, 12))
    ScoreNorm(states="noised")(fewer)
    torch.testing.assert_close(network.given[-40][0][:4], first[3:7], rtol=1e-6, atol=1e-5)
    network.given.clear()
    ScoreNorm(states="noised")(replace(conditional, labels=None))
    assert all(label is None for _, label in network.given)


def test_refuses_data_that_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"calibration\.states=noised: needs real images; add dataset=digits"):
        ScoreNorm(states="noised")(noised(4, None))
    with pytest.raises(InputError, match=r"dataset: states=trajectory reads no data; use calibration\.states=noised"):
        ScoreNorm()(noised(4, noisy_data(9)))
    with pytest.raises(InputError, match=r"images of toy are \(1, 4, 4\), the checkpoint's are \(1, 8, 8\)"):
        ScoreNorm(states="noised")(replace(noised(4, noisy_data(9)), shape=(1, 8, 8)))
    unlabelled = replace(noised(4, noisy_data(9)), labels=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError, match=r"toy has images without a label; use labels=none"):
        ScoreNorm(states="noised")(unlabelled)
    with pytest.raises(InputError, match=r"calibration\.states=noisy.*'noised'"):
        ScoreNorm(states="noisy")


def test_scale_interpolates_in_log_rho() -> None:
    scale = ScoreScale((0.1, 1.0, 10.0), (0.5, 0.7, 0.8))
    rho = torch.tensor([0.0, 0.01, 0.1, 10**-0.5, 1.0, 10**0.5, 10.0, 99.0], dtype=torch.float64)
    expected = [0.5, 0.5, 0.5, 0.6, 0.7, 0.75, 0.8, 0.8]
    assert scale(rho).tolist() == pytest.approx(expected)
    assert scale.knots().tolist() == [0.1, 1.0, 10.0]
    for levels, values in (((1.0, 0.5), (1.0, 1.0)), ((0.5, 1.0), (0.0, 1.0)), ((1.0,), (1.0,))):
        with pytest.raises(InputError, match="score scale"):
            ScoreScale(levels, values)


def record(**provenance) -> Record:
    values = {
        "rho": torch.tensor([0.1, 1.0], dtype=torch.float64),
        "mean_abs_eps": torch.tensor([0.6, 0.8], dtype=torch.float64),
        "standard_error": torch.tensor([0.01, 0.02], dtype=torch.float64),
    }
    return Record("score_norm", values, {"checkpoint": "ab" * 32, "images": 64, **provenance})


def test_record_round_trip_and_plot(tmp_path: Path) -> None:
    path = record_beside(tmp_path / "model.safetensors", "score_norm")
    assert path.name == "model.score_norm.safetensors"
    record().save(path)
    back = load_record(path, "score_norm", "ab" * 32)
    assert back.provenance == record().provenance
    assert all(torch.equal(back.values[name], value) for name, value in record().values.items())
    assert load_scale(path, "ab" * 32) == ScoreScale((0.1, 1.0), (0.6, 0.8))


def test_equal_records_are_equal_bytes(tmp_path: Path) -> None:
    """A run of sample.py is known by the bytes of the record that it reads."""
    paths = [tmp_path / str(number) for number in range(8)]
    for path in paths:
        record().save(path)
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("noise_schedule", [DiscreteVP(), EDM()], ids=lambda it: type(it).__name__)
def test_plots_against_the_time_of_a_process(noise_schedule: NoiseSchedule, tmp_path: Path) -> None:
    ScoreNorm().plot(record(), tmp_path / "plot.png", noise_schedule)
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_the_plot_shades_the_overwritten_levels() -> None:
    """Five entries at tau = 0.001 .. 0.005 take the value of the sixth."""
    clipped = _clipped(DiscreteVP())
    assert clipped is not None
    alpha2 = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    assert clipped[1] == 5
    assert clipped[0] == pytest.approx(float((1 / alpha2[5] - 1).sqrt()), rel=1e-12)
    assert _clipped(VE()) is None


def test_a_title_says_which_states_were_measured() -> None:
    assert _title(record()) == "64 images, the model's own trajectory"
    assert _title(record(states="noised", dataset={"name": "toy"})) == "64 images of toy, noised"
    assert _title(record(images=None)) == "an unknown number of images, the model's own trajectory"


def test_a_plot_without_errors_shows_less(tmp_path: Path) -> None:
    known, unknown = record(), record(images=None)
    unknown.values["standard_error"].fill_(torch.nan)
    plot(known, tmp_path / "known.png", LinearVP())
    plot(unknown, tmp_path / "unknown.png", LinearVP())
    assert (tmp_path / "unknown.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "unknown.png").read_bytes() != (tmp_path / "known.png").read_bytes()


def test_a_record_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    with pytest.raises(InputError, match=r"no such record; make one with: python calibrate.py calibration=score_norm"):
        load_record(path, "score_norm", "cd" * 32)
    record().save(path)
    with pytest.raises(InputError, match=r"made for checkpoint abababababab, this one is cdcdcdcdcdcd; make one with"):
        load_record(path, "score_norm", "cd" * 32)
    with pytest.raises(InputError, match="holds 'score_norm', not 'score_optimal'"):
        load_record(path, "score_optimal", "ab" * 32)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_record(path, "score_norm", "ab" * 32)


def test_score_norm_feeds_deis() -> None:
    values = measure(200, nfe=200)
    scale = ScoreScale(tuple(values["rho"].tolist()), tuple(values["mean_abs_eps"].tolist()))
    rho = grid(Power(7), 40.0, 0.01, 6)
    plain, normalised = (DEIS(2, Power(1), s)(Power(7), 40.0, 0.01, 6) for s in (None, scale))

    def error(N: Tensor) -> float:
        x = [40.0]
        eps: list[float] = []
        for i in range(6):
            eps.append(float(rho[i]) * x[i] / (C**2 + float(rho[i]) ** 2))
            x.append(x[i] + sum(float(n) * e for n, e in zip(N[i], eps, strict=False)))
        exact = 40 * ((C**2 + 0.01**2) / (C**2 + 40.0**2)) ** 0.5
        return abs(x[-1] - exact)

    assert error(normalised.N) < 0.01 * error(plain.N)
