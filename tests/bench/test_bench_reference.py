"""The truth: had in two independent ways that agree."""

import dataclasses

import numpy as np
import pytest
import torch

from odebench import ode
from odebench.bench.cases import WORKS, build, loss
from odebench.bench.fields import Robertson, VanDerPol
from odebench.bench.reference import LINEARISED, relative_error, solve_reference


@pytest.mark.parametrize(
    ("name", "field", "y"),
    [
        ("robertson", Robertson(), [0.7, 0.3, 0.2]),
        ("vdp", VanDerPol(1000.0), [1.2, 0.4]),
    ],
)
def test_derivatives_by_hand_are_those_of_the_field(name, field, y):
    y = torch.tensor(y, dtype=torch.float64)
    (parameter,) = field.parameters()
    (key,) = dict(field.named_parameters())
    call = lambda p, y: torch.func.functional_call(field, {key: p}, (torch.zeros(()), y))  # noqa: E731
    of_parameter, of_y = torch.func.jacrev(call, argnums=(0, 1))(parameter.detach(), y)
    rate, by_hand, of_y_by_hand = LINEARISED[name](parameter.detach().numpy().reshape(-1), y.numpy())
    np.testing.assert_allclose(rate, field(None, y).detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(by_hand, of_parameter.reshape(len(y), -1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(of_y_by_hand, of_y.numpy(), rtol=1e-12)


def test_sensitivities_and_backpropagation_give_one_gradient():
    pytest.importorskip("scipy")
    # mild enough for an explicit method
    work = dataclasses.replace(WORKS["vdp"], field=lambda: VanDerPol(3.0), times=(0.0, 0.5, 2.0))
    problem = build(work)
    truth = solve_reference(problem, gradients=True)
    y0 = problem.state.clone().requires_grad_()
    y = ode.solve(problem.field, y0, problem.times, rtol=1e-11, atol=1e-11).y
    gradients = torch.autograd.grad(loss(y), [*problem.parameters, y0])
    assert relative_error([y.detach()], truth.states) < 1e-8
    assert truth.gradients is not None
    assert relative_error(list(gradients), truth.gradients) < 1e-7


def test_the_engine_and_scipy_agree_on_the_states():
    integrate = pytest.importorskip("scipy.integrate")
    problem = build(WORKS["tiny"])
    truth = solve_reference(problem, gradients=False)
    assert truth.gradients is None
    field = problem.field.double()

    def rate(t, y):
        with torch.no_grad():
            return field(None, torch.from_numpy(y).view(20, 2)).reshape(-1).numpy()

    times = problem.times.double().tolist()
    y0 = problem.state.double().reshape(-1).numpy()
    solution = integrate.solve_ivp(
        rate, (times[0], times[-1]), y0, method="DOP853", t_eval=times, rtol=1e-11, atol=1e-11
    )
    assert relative_error([torch.from_numpy(solution.y.T.copy()).view(-1, 20, 2)], truth.states) < 1e-8


def test_relative_error_is_that_of_all_tensors_together():
    truth = [torch.tensor([3.0]).double(), torch.tensor([4.0]).double()]
    assert relative_error([torch.tensor([3.0]), torch.tensor([4.5])], truth) == pytest.approx(0.1)
