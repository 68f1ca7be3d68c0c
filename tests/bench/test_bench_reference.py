"""Reference solutions: two independent computations agree."""

import dataclasses

import numpy as np
import pytest
import torch

from odebench import ode
from odebench.bench.cases import CASES, build_problem, loss
from odebench.bench.fields import Robertson, VanDerPol
from odebench.bench.reference import FIELDS_WITH_JACOBIANS, relative_error, solve_reference


@pytest.mark.parametrize(
    ("name", "field", "y"),
    [
        ("robertson", Robertson(), [0.7, 0.3, 0.2]),
        ("vdp", VanDerPol(1000.0), [1.2, 0.4]),
    ],
)
def test_handwritten_jacobians_are_those_of_the_field(name, field, y):
    y = torch.tensor(y, dtype=torch.float64)
    (parameter,) = field.parameters()
    (key,) = dict(field.named_parameters())
    call = lambda p, y: torch.func.functional_call(field, {key: p}, (torch.zeros(()), y))  # noqa: E731
    df_dparameter, df_dy = torch.func.jacrev(call, argnums=(0, 1))(parameter.detach(), y)
    rate, df_dparameter_numpy, df_dy_numpy = FIELDS_WITH_JACOBIANS[name](
        parameter.detach().numpy().reshape(-1), y.numpy()
    )
    np.testing.assert_allclose(rate, field(None, y).detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(df_dparameter_numpy, df_dparameter.reshape(len(y), -1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(df_dy_numpy, df_dy.numpy(), rtol=1e-12)


def test_sensitivities_and_backpropagation_give_the_same_gradient():
    pytest.importorskip("scipy")
    # not stiff, for an explicit method
    case = dataclasses.replace(CASES["vdp"], field=lambda: VanDerPol(3.0), times=(0.0, 0.5, 2.0))
    problem = build_problem(case)
    reference = solve_reference(problem, gradients=True)
    y0 = problem.state.clone().requires_grad_()
    y = ode.solve(problem.field, y0, problem.times, rtol=1e-11, atol=1e-11).y
    gradients = torch.autograd.grad(loss(y), [*problem.parameters, y0])
    assert relative_error([y.detach()], reference.states) < 1e-8
    assert reference.gradients is not None
    assert relative_error(list(gradients), reference.gradients) < 1e-7


def test_odebench_and_scipy_agree_on_the_states():
    integrate = pytest.importorskip("scipy.integrate")
    problem = build_problem(CASES["tiny"])
    reference = solve_reference(problem, gradients=False)
    assert reference.gradients is None
    field = problem.field.double()

    def rate(t, y):
        with torch.no_grad():
            return field(None, torch.from_numpy(y).view(20, 2)).reshape(-1).numpy()

    times = problem.times.double().tolist()
    y0 = problem.state.double().reshape(-1).numpy()
    solution = integrate.solve_ivp(
        rate, (times[0], times[-1]), y0, method="DOP853", t_eval=times, rtol=1e-11, atol=1e-11
    )
    assert relative_error([torch.from_numpy(solution.y.T.copy()).view(-1, 20, 2)], reference.states) < 1e-8


def test_relative_error_is_over_all_tensors():
    reference = [torch.tensor([3.0]).double(), torch.tensor([4.0]).double()]
    assert relative_error([torch.tensor([3.0]), torch.tensor([4.5])], reference) == pytest.approx(0.1)
