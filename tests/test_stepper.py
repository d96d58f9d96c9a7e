"""`Stepper`: the loop of a run in the hands of its caller."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from exact_runs import FIXED, STOCHASTIC, X, gauss, table
from torch import Tensor

from scoreline.runtime.seeded_noise import normal
from scoreline.sampling import Stepper, integrate, trajectory
from scoreline.schedules.flow import RectifiedFlow
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.tableau import Tableau, build_tableau


def eps(x: Tensor, rho: float) -> Tensor:
    return x * (rho / (0.25 + rho**2))


def draw(row: int) -> Tensor:
    return normal(range(len(X)), tuple(X.shape[1:]), "solver", row)


def own_run(stepper: Stepper, x: Tensor, estimate: Callable[[Tensor, float], Tensor] = eps) -> tuple[Tensor, int]:
    """The sample of a caller's own loop, and its number of calls."""
    state, calls = stepper.start(x), 0
    while not state.done:
        assert state.sigma is not None
        state, calls = stepper.advance(estimate(state.x, state.sigma)), calls + 1
    return state.x, calls


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("reuse", [False, True])
def test_it_equals_integrate_to_the_bit(name: str, reuse: bool) -> None:
    run = table(name)
    before = X.clone()
    stepper = Stepper(run, draw if name in STOCHASTIC else None, reuse)
    ours, calls = own_run(stepper, X)
    expected = integrate(eps, X, run, draw if name in STOCHASTIC else None)
    assert torch.equal(ours, expected)
    assert calls == run.nfe == 12
    assert torch.equal(X, before)
    kept = ours.clone()
    assert torch.equal(own_run(stepper, 2 * X)[0], integrate(eps, 2 * X, run, draw if name in STOCHASTIC else None))
    assert torch.equal(own_run(stepper, X)[0], kept), "a third run knows nothing of the second"


@pytest.mark.parametrize("name", FIXED)
def test_denoised_images_give_the_same_run_to_rounding(name: str) -> None:
    run, x = table(name), X.double()
    noise = (lambda row: draw(row).double()) if name in STOCHASTIC else None
    stepper = Stepper(run, noise)
    state = stepper.start(x)
    while not state.done:
        state = stepper.step(gauss(state.x, state.sigma))
    torch.testing.assert_close(state.x, integrate(eps, x, run, noise), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "deis_tab3", "heun", "unipc_3", "velocity_abm2"])
def test_states_are_those_of_the_trajectory(name: str) -> None:
    run = table(name)
    states = {state.row: state for state in trajectory(eps, X, run)}
    stepper = Stepper(run)
    state, rows = stepper.start(X), []
    while not state.done:
        assert state.sigma == float(run.query_levels[state.row])
        assert state.rho == float(run.rho[state.row])
        assert state is not stepper.state
        assert torch.equal(state.x, stepper.state.x)
        rows.append(state.row)
        state = stepper.advance(eps(state.x, state.sigma))
        assert torch.equal(state.x, states[state.row].x)
    assert rows == [row for row, call in enumerate(run.calls) if call]
    assert (state.row, state.rho, state.sigma) == (len(run.B), 0.002, None)


def test_states_that_are_not_reused_last() -> None:
    stepper = Stepper(table("deis_tab3"))
    state, kept = stepper.start(X), []
    while not state.done:
        kept.append((state.x, state.x.clone()))
        state = stepper.advance(eps(state.x, state.sigma))
    assert all(torch.equal(x, copy) for x, copy in kept)


def test_a_run_may_stop_in_the_middle() -> None:
    stepper = Stepper(table("dpmpp_2m"))
    for calls in (1, 5, 11):
        state = stepper.start(X)
        for _ in range(calls):
            state = stepper.step(gauss(state.x, state.sigma))
        assert not state.done
    assert torch.equal(own_run(stepper, X)[0], own_run(Stepper(table("dpmpp_2m")), X)[0])


@pytest.mark.parametrize("place", ["before", "after"])
def test_steps_outside_of_a_run_are_errors(place: str) -> None:
    stepper = Stepper(table("ddim", 2))
    if place == "after":
        own_run(stepper, X)
        assert stepper.state.done
    message = "begin it with start" if place == "before" else "the run is over; begin another one with start"
    with pytest.raises(ValueError, match=message):
        stepper.step(X)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stochastic_run_asks_for_its_noise(name: str) -> None:
    with pytest.raises(ValueError, match="needs `draw`"):
        own_run(Stepper(table(name)), X)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (4, 1, 4, 4), (4, 2, 4, 4), (5, 3, 4, 4), (4, 6, 4, 4), (4, 48), ()])
def test_another_shape_is_refused_and_the_run_goes_on(shape: tuple[int, ...]) -> None:
    stepper = Stepper(table("deis_tab2", 3))
    state = stepper.step(gauss(X, torch.tensor(stepper.start(X).sigma)))
    for wrong in (stepper.step, stepper.advance):
        with pytest.raises(ValueError, match=r"the network returned \(.*\) for x of \(4, 3, 4, 4\)"):
            wrong(torch.zeros(shape))
        assert stepper.state.x is state.x
    while not state.done:
        state = stepper.advance(eps(state.x, state.sigma))
    torch.testing.assert_close(state.x, own_run(Stepper(table("deis_tab2", 3)), X)[0], rtol=1e-5, atol=1e-5)


def test_from_infinity_it_takes_denoised_images() -> None:
    noise = torch.randn(64, 2, dtype=torch.float64)
    run = build_tableau(DDIM(), RectifiedFlow(), (float("inf"), 0.01), 10, "none")
    stepper = Stepper(run)
    state = stepper.start(noise)
    assert state.sigma == float("inf")
    assert state.x is noise
    state = stepper.step(torch.full_like(noise, 0.3))
    torch.testing.assert_close(state.x, 0.3 + state.rho * noise, rtol=1e-12, atol=1e-12)
    while not state.done:
        state = stepper.step(torch.full_like(noise, 0.3))
    torch.testing.assert_close(state.x, 0.3 + 0.01 * noise, rtol=1e-10, atol=1e-10)


def live(run: Tableau, loop: Callable[[Callable[[Tensor, float], Tensor], Tensor, Tableau], object]) -> int:
    """The most tensors of the state's size that are alive at a call, that of the caller left out."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def network(x: Tensor, rho: float) -> Tensor:
        nonlocal most
        if not any(ref() is x for ref in alive):
            alive.append(weakref.ref(x))
        most = max(most, sum(ref() is not None for ref in alive))
        out = eps(x, rho)
        alive.append(weakref.ref(out))
        return out

    loop(network, X, run)
    return most


def own_loop(network: Callable[[Tensor, float], Tensor], x: Tensor, run: Tableau) -> None:
    stepper = Stepper(run)
    state = stepper.start(x)
    del x
    while not state.done:
        estimate = network(state.x, state.sigma)
        del state
        state = stepper.advance(estimate)
        del estimate


def driven(network: Callable[[Tensor, float], Tensor], x: Tensor, run: Tableau) -> None:
    for _ in trajectory(network, x, run):
        pass


@pytest.mark.parametrize("name", ["ddim", "deis_tab3", "heun", "dpmpp_3m", "unipc_3", "velocity_abm2", "deis_rho_rk4"])
def test_it_holds_no_more_than_the_trajectory(name: str) -> None:
    run = table(name, 24)
    gc.collect()
    assert live(run, own_loop) == live(run, driven)


def test_the_same_tableau_serves_two_steppers_at_once() -> None:
    run = table("unipc_3")
    one, two = Stepper(run), Stepper(run)
    a, b = one.start(X), two.start(3 * X)
    while not a.done:
        a, b = one.step(gauss(a.x, a.sigma)), two.step(gauss(b.x, b.sigma))
    torch.testing.assert_close(3 * a.x, b.x, rtol=1e-4, atol=1e-6)
