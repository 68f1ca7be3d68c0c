"""The model and the solver built from the settings."""

import numpy as np
import pytest
import torch

from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.errors import Diverged, UsageError
from odebench.ode import Rows
from odebench.tasks import build_task
from odebench.tasks.build import ConfiguredSolver


@pytest.fixture
def task(tiny_odenet):
    def build(*overrides):
        return build_task(read_settings(compose([*tiny_odenet, *overrides])), torch.device("cpu"))

    return build


@pytest.fixture
def solve(tiny_odenet):
    def build(*overrides, differentiable=True):
        s = read_settings(compose([*tiny_odenet, "gradient=backprop", *overrides]))
        return ConfiguredSolver(s.solver, s.gradient, s.extensions, differentiable, s.dynamics)

    return build


def gradient_of(task):
    """The gradient of the first step's loss, and the statistics of the solve."""
    torch.manual_seed(0)
    loss = task.loss(task.batch(0))
    loss.value.backward()
    return torch.cat([p.grad.flatten() for p in task.model.parameters()]), loss.solves[0]


def weights(task):
    """Set the same weights independently of what was built before."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return task


EXACT = [
    "solver=dopri8 solver.controller=pid gradient=checkpoint gradient.checkpoints=8",
    "solver=tsit5 gradient=checkpoint gradient.keep=graphs",
    "solver=bosh3 gradient=checkpoint gradient.recompute=stage",
    "solver=dopri5 solver.stepping=per_sample gradient=checkpoint",
    "solver=reversible_rk4 solver.steps=4 gradient=reversible",
    "solver=alf solver.damping=0.95 gradient=reversible",
]


@pytest.mark.parametrize("choice", EXACT)
def test_exact_modes_train_with_the_gradient_of_backprop(task, choice):
    gradient, stats = gradient_of(weights(task(*choice.split())))
    overrides = [override for override in choice.split() if not override.startswith("gradient")]
    expected, other = gradient_of(weights(task(*overrides, "gradient=backprop")))
    assert stats.accepted == other.accepted > 1
    torch.testing.assert_close(gradient, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("choice", ["gradient=interpolated_adjoint", "gradient.norm=full", "gradient.method=tsit5"])
def test_continuous_modes_come_near_it(task, choice):
    extra = [] if choice.startswith("gradient=") else ["gradient=adjoint"]
    gradient, stats = gradient_of(weights(task(*extra, choice, "tol=1e-5")))
    expected, _ = gradient_of(weights(task("gradient=backprop", "tol=1e-5")))
    assert stats.backward.nfe > 0
    assert float((gradient - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("solver", ["adams", "scipy_rk45", "vode_adams", "explicit_adams"])
def test_methods_of_every_family_evaluate(task, solver):
    built = weights(task(f"solver={solver}", "gradient=adjoint", "tol=1e-2"))
    reference = weights(task("gradient=adjoint", "tol=1e-4")).evaluate("validation")
    assert built.evaluate("validation")["loss"] == pytest.approx(reference["loss"], rel=0.02)


REFUSED = {
    "solver=dopri5 solver.stepping=per_sample gradient=adjoint": "solver.stepping=per_sample: ",
    "solver=scipy_rk45 gradient=backprop": "gradient=backprop: autograd cannot differentiate through SciPy's",
    "solver=adams gradient=checkpoint": "gradient=checkpoint: a step of adams",
}


@pytest.mark.parametrize("choice", REFUSED)
def test_an_unsupported_combination_is_refused_before_anything_is_written(task, choice):
    with pytest.raises(UsageError) as caught:
        task(*choice.split())
    assert str(caught.value).startswith(REFUSED[choice])
    assert "\n" not in str(caught.value)


WEIGHT = torch.linspace(-2, 2, 9).reshape(3, 3).requires_grad_()
Z0 = torch.linspace(-1, 1, 12).reshape(4, 3)


def field(t, z):
    return torch.tanh(z @ WEIGHT) * (1 + t)


def test_regularised_dynamics_add_a_penalty_in_training_and_do_not_change_solution_and_warm_step(solve):
    plain, rnode = solve(), solve("dynamics=rnode")
    for _ in range(2):
        expected, found = plain(field, Z0, (0.0, 1.0)), rnode(field, Z0, (0.0, 1.0))
        torch.testing.assert_close(found.y, expected.y)
        assert found.stats.nfe == expected.stats.nfe
        assert rnode.warm_step == pytest.approx(plain.warm_step, rel=1e-2)
    penalty, values = rnode.pop_penalty()
    assert penalty.requires_grad
    torch.testing.assert_close(penalty.detach(), 0.01 * sum(values.values()))
    assert set(values) == {"dynamics/kinetic", "dynamics/jacobian"}
    assert plain.pop_penalty() == (None, {})


def test_a_failed_solve_adds_no_penalty_to_the_next_step(solve):
    rnode = solve("dynamics=rnode", "solver.max_steps=40")
    z0 = torch.ones(2, 1, requires_grad=True)
    rnode(lambda t, z: -z, z0, (0.0, 1.0))
    with pytest.raises(Diverged):
        rnode(lambda t, z: -1e6 * z, z0, (0.0, 1.0))
    assert rnode.pop_penalty() == (None, {})


@pytest.mark.parametrize("dynamics", ["rnode", "taynode", "steer"])
def test_a_solve_without_a_graph_ignores_regularised_dynamics(solve, dynamics):
    plain, regularised = solve(), solve(f"dynamics={dynamics}")
    with torch.no_grad():
        expected, found = plain(field, Z0, (0.0, 1.0)), regularised(field, Z0, (0.0, 1.0))
    assert torch.equal(found.y, expected.y)
    assert regularised.pop_penalty() == (None, {})


def test_a_random_end_time_is_only_for_training(solve):
    training, evaluation = solve("dynamics=steer"), solve("dynamics=steer", differentiable=False)
    ends = [float(training(field, Z0, (0.0, 1.0)).t[-1]) for _ in range(5)]
    assert len(set(ends)) == 5
    assert all(0.5 <= end <= 1.5 for end in ends)
    with torch.no_grad():
        assert evaluation(field, Z0, (0.0, 1.0)).t.tolist() == [0.0, 1.0]


class Noisy(torch.nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, t, z):
        return -z + self.draw(z.shape)


OWN = np.random.default_rng(0)
NOISE = {
    "torch's": lambda shape: 1e-6 * torch.randn(shape),
    "its own": lambda shape: torch.from_numpy(OWN.normal(size=shape)).float(),
}


@pytest.mark.parametrize("stepping", ["shared", "per_sample"])
@pytest.mark.parametrize("draw", NOISE.values(), ids=list(NOISE))
def test_noise_drawn_anew_within_a_solve_is_refused(solve, draw, stepping):
    chosen = solve(f"solver.stepping={stepping}")
    noisy = Noisy(draw)
    for f in (noisy, noisy, noisy.forward):  # also the second time
        with pytest.raises(UsageError, match=r"^model: its vector field draws random numbers .* args=\(noise,\)"):
            chosen(f, Z0, (0.0, 1.0))


def test_noise_drawn_once_before_a_solve_is_allowed(solve):
    noise = torch.randn(4, 3)
    for stepping in ("shared", "per_sample"):
        chosen = solve(f"solver.stepping={stepping}")
        assert torch.isfinite(chosen(lambda t, z, e: e - z, Z0, (0.0, 1.0), args=(Rows(noise),)).y).all()


def test_a_field_that_is_nan_is_no_noise(solve):
    with pytest.raises(Diverged, match="NaN"):
        solve()(lambda t, z: z * torch.nan, Z0, (0.0, 1.0))


def test_a_layer_that_changes_at_every_evaluation_is_refused_by_its_name(solve):
    with pytest.raises(UsageError, match=r"^model: f has 1 \(Dropout\) in training mode"):
        solve()(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Dropout(0.1)), Z0, (0.0, 1.0))


def test_a_field_is_checked_once_without_side_effects(solve):
    calls = []
    chosen = solve("solver=rk4", "solver.steps=2")
    before = torch.get_rng_state()
    for _ in range(3):
        assert chosen(lambda t, z: calls.append(t) or -z, Z0, (0.0, 1.0)).stats.nfe == 8
    assert len(calls) == 3 * 8 + 2
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_so_small_that_they_are_too_many_are_refused_by_their_setting(solve):
    chosen = solve("solver=rk4", "solver.steps=null", "solver.step_size=0.01", "solver.max_steps=50")
    assert chosen(lambda t, y: -y, torch.ones(2, 1), (0.0, 0.5)).stats.accepted == 50
    with pytest.raises(UsageError, match=r"^solver\.step_size=0\.01: 100 steps are more than max_steps=50; ") as error:
        chosen(lambda t, y: -y, torch.ones(2, 1), (0.0, 1.0))
    assert error.value.settings == ("solver.step_size", "solver.max_steps")


def test_steps_end_at_the_output_times_if_stop_at_times_is_set(solve):
    def nearest(*overrides):
        sizes = solve(*overrides)(lambda t, y: -y, torch.ones(2, 1), (0.0, 0.3, 1.0)).stats.step_sizes
        return abs(np.cumsum(sizes) - 0.3).min()

    assert nearest("solver.stop_at_times=true") < 1e-6 < nearest()
