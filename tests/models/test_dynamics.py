"""Regularised dynamics: their integrals against exact solutions, and what they must not change."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from odebench import ode
from odebench.errors import UsageError
from odebench.models.augmented_state import (
    AugmentedField,
    FieldEvaluation,
    exact_trace,
    hutchinson_trace,
    zero_integrals,
)
from odebench.models.dynamics import RegularisationTerms, RegularisedSolve, solution_derivative

ALL = {"kinetic": 1.0, "jacobian": 0.5, "taylor": 0.25}
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
MATRIX = torch.tensor([[-0.3, 1.0, 0.2], [-1.0, -0.2, 0.4], [0.1, 0.3, -0.5]], dtype=torch.float64)


class Field(nn.Module):
    """A small network of z and time (a scalar, or one for each row)."""

    def __init__(self, dim=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim + 1, 8), nn.Tanh(), nn.Linear(8, dim)).double()

    def forward(self, t, z):
        return self.layers(torch.cat([z, t.expand(len(z)).unsqueeze(1)], 1))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def linear(t, z):
    return z @ MATRIX.T


def penalised(terms, f, y0, t, **how):
    """The solution, the penalty and its terms."""
    solve = RegularisedSolve(RegularisationTerms(**terms))
    solution = solve(f, y0, t, **(TIGHT | how))
    return solution, *solve.pop_penalty()


@pytest.mark.parametrize("times", [(0.0, 0.2, 1.5), (1.5, 0.0)], ids=["several times", "backward"])
def test_integrals_of_a_linear_field_are_the_exact_ones(times):
    z0 = rand(4, 3)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    steps, weights = 0.75 * (nodes + 1), 0.75 * weights
    sign = -1 if times[-1] == 0 else 1
    exact = {"kinetic": 0.0, "taylor": 0.0}
    for step, weight in zip(steps, weights, strict=True):
        z = z0 @ torch.linalg.matrix_exp(sign * step * MATRIX).T
        for name, order in {"kinetic": 1, "taylor": 3}.items():
            exact[name] += weight * (z @ torch.linalg.matrix_power(MATRIX, order).T).square().mean()
    _, penalty, values = penalised(ALL, linear, z0, times, method="dopri8", rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(values["dynamics/kinetic"], exact["kinetic"], rtol=1e-6, atol=0)
    torch.testing.assert_close(values["dynamics/taylor"], exact["taylor"], rtol=1e-6, atol=0)
    torch.testing.assert_close(penalty.detach(), sum(ALL[name] * values[f"dynamics/{name}"] for name in ALL))


def test_the_jacobian_term_is_the_squared_frobenius_norm_in_the_mean():
    values = [penalised(ALL, linear, rand(100, 3), (0.0, 2.0), steps=1)[2]["dynamics/jacobian"] for _ in range(8)]
    assert float(torch.stack(values).mean()) == pytest.approx(2 * float(MATRIX.square().sum()) / 3, abs=0.1)


KNOWN = {
    "1 / (1 + t^2)": (lambda t, z: -2 * t * z**2, lambda t: 1 / (1 + t**2)),
    "tan t": (lambda t, z: 1 + z**2, torch.tan),
    "exp(sin t)": (lambda t, z: torch.cos(t) * z, lambda t: torch.exp(torch.sin(t))),
}


@pytest.mark.parametrize("solution", KNOWN)
def test_derivatives_are_those_of_known_solutions(solution):
    field, exact = KNOWN[solution]
    t = torch.tensor([0.2, 0.5], dtype=torch.float64)
    by_row = lambda t, z: field(t.reshape(-1, 1), z)  # noqa: E731
    derivative = exact
    for order in range(1, 5):
        derivative = partial(lambda d, t: torch.func.jvp(d, (t,), (torch.ones_like(t),))[1], derivative)
        expected = derivative(t)
        rows = solution_derivative(FieldEvaluation(by_row, t, exact(t).unsqueeze(1)), order)
        torch.testing.assert_close(rows.squeeze(1), expected, rtol=1e-9, atol=0)
        one = solution_derivative(FieldEvaluation(field, t[0], exact(t[:1]).unsqueeze(1)), order)
        torch.testing.assert_close(one.view(()), expected[0], rtol=1e-9, atol=0)


def test_gradients_of_the_penalty_equal_finite_differences():
    field, z0 = Field(2), rand(2, 2)
    names, parameters = zip(*field.named_parameters(), strict=True)

    def penalty(z, *weights):
        torch.manual_seed(0)
        evaluate = lambda t, y: torch.func.functional_call(field, dict(zip(names, weights, strict=True)), (t, y))  # noqa: E731
        return penalised(ALL, evaluate, z, (0.0, 1.0), method="heun2", steps=1)[1]

    leaves = [x.detach().requires_grad_() for x in (z0, *parameters)]
    # Along one random direction: as strict, and one evaluation for all.
    assert torch.autograd.gradcheck(penalty, leaves, fast_mode=True)


def gradient(field, **how):
    """The gradient of a loss with a penalty in one gradient mode; the same noise every time."""
    torch.manual_seed(1)
    z = rand(5, 3).requires_grad_()
    solution, penalty, _ = penalised(ALL, field, z, (0.0, 0.5), **how)
    pulled = torch.autograd.grad(solution.y.square().sum() + penalty, [z, *field.parameters()])
    return torch.cat([g.flatten() for g in pulled])


SLOW = pytest.mark.slow
MODES = [
    pytest.param({"gradient": "checkpoint"}, 1e-12, id="checkpoint"),
    pytest.param({"gradient": "adjoint"}, 1e-4, id="adjoint"),
    pytest.param({"gradient": "interpolated_adjoint"}, 1e-4, id="interpolated adjoint"),
    pytest.param({"stepping": "per_sample", "gradient": "checkpoint"}, 1e-4, id="per sample"),
    pytest.param({"gradient": ode.Adjoint(norm="full")}, 1e-4, id="full adjoint", marks=SLOW),
    pytest.param({"method": "reversible_dopri5", "gradient": "reversible"}, 1e-4, id="reversible", marks=SLOW),
    pytest.param({"method": "radauIIA5", "gradient": "adjoint"}, 1e-4, id="implicit", marks=SLOW),
    pytest.param({"method": "adams", "gradient": "adjoint"}, 1e-3, id="adams", marks=SLOW),
    pytest.param({"method": "scipy_lsoda", "gradient": "adjoint"}, 1e-3, id="scipy", marks=SLOW),
]


@pytest.mark.parametrize(("how", "tolerance"), MODES)
def test_every_mode_gives_the_gradient_of_backprop(how, tolerance):
    field = Field()
    tolerances = {"rtol": 1e-5, "atol": 1e-5}
    expected, found = gradient(field, **tolerances), gradient(field, **tolerances, **how)
    assert float((found - expected).norm() / expected.norm()) < tolerance


WAYS = {
    "shared": {},
    "per sample": {"stepping": "per_sample"},
    "fixed": {"method": "rk4", "steps": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.3, 1.0)], ids=["two times", "three times"])
def test_the_terms_change_neither_the_solution_nor_the_steps(way, times):
    how = {"rtol": 1e-4, "atol": 1e-4} | WAYS[way]
    field, z0, terms = Field(), rand(5, 3), {"kinetic": 1.0, "jacobian": 1.0}
    augmented, state = AugmentedField(field, [exact_trace]), (z0, *zero_integrals(z0, 1))
    for f, y0 in {field: z0, augmented: state}.items():
        plain, (found, penalty, _) = ode.solve(f, y0, times, **how), penalised(terms, f, y0, times, **how)
        assert penalty > 0
        assert (found.stats.nfe, found.stats.accepted) == (plain.stats.nfe, plain.stats.accepted)
        torch.testing.assert_close(found.y, plain.y, rtol=1e-9, atol=1e-10)


def test_the_integrals_and_the_noise_of_a_model_are_shared_with_the_terms():
    field, z0, noise = Field(), rand(4, 3), rand(4, 3)
    state, terms = (z0, *zero_integrals(z0, 1)), {"jacobian": 1.0}
    one = penalised(terms, AugmentedField(field, [hutchinson_trace], noise), state, (0.0, 1.0))
    args = (ode.Rows(noise),)
    other = penalised(
        terms, AugmentedField(field, [hutchinson_trace]), state, (0.0, 1.0), args=args, stepping="per_sample"
    )
    expected = ode.solve(AugmentedField(field, [hutchinson_trace], noise), state, (0.0, 1.0), **TIGHT)
    for solution, penalty, _ in (one, other):
        torch.testing.assert_close(solution.y[1], expected.y[1], rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(penalty, one[1], rtol=1e-6, atol=0)


def test_arguments_are_passed_to_the_field():
    scale = torch.tensor(2.0, dtype=torch.float64)
    _, _, values = penalised(ALL, lambda t, z, a: a * torch.ones_like(z), rand(4, 3), (0.0, 1.5), args=(scale,))
    assert float(values["dynamics/kinetic"]) == pytest.approx(6.0)
    assert float(values["dynamics/jacobian"]) == 0


def test_solves_add_up_until_pop_penalty():
    solve = RegularisedSolve(RegularisationTerms(kinetic=2.0))
    for _ in range(2):
        solve(lambda t, z: torch.ones_like(z), rand(4, 3), (0.0, 1.5), **TIGHT)
    penalty, values = solve.pop_penalty()
    assert (float(penalty), float(values["dynamics/kinetic"])) == pytest.approx((6.0, 3.0))
    assert solve.pop_penalty() == (None, {})


def test_without_terms_the_solution_is_the_plain_one():
    f, z0 = Field(), rand(4, 3)
    solution, penalty, values = penalised({}, f, z0, (0.0, 1.0))
    assert (penalty, values) == (None, {})
    assert torch.equal(solution.y, ode.solve(f, z0, (0.0, 1.0), **TIGHT).y)


def test_a_random_end_time_is_uniform_around_the_last_time_and_differentiable():
    times = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    drawn = torch.stack([RegularisationTerms(steer=0.25).with_random_end(times) for _ in range(300)])
    assert bool((drawn[:, :2] == times[:2]).all())
    ends = drawn[:, 2].detach()
    assert 2.5 < float(ends.min()) < 2.55 < 3.45 < float(ends.max()) < 3.5
    assert float(ends.mean()) == pytest.approx(3.0, abs=4 / math.sqrt(12 * 300))
    drawn[0, 2].backward()
    assert float(times.grad[2]) > 0.5
    assert RegularisationTerms(steer=0.5).with_random_end((2.0, 0.0))[0] == 2


@pytest.mark.parametrize(
    ("y0", "how"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 3)), {}),
        (torch.zeros(3), {}),
        (torch.zeros(2, 3), {"dense": True}),
    ],
    ids=["a tuple", "no batch", "dense"],
)
def test_solves_that_cannot_be_regularised_raise_an_error(y0, how):
    with pytest.raises(UsageError, match="dynamics=plain"):
        RegularisedSolve(RegularisationTerms(**ALL))(lambda t, y: y, y0, (0.0, 1.0), rtol=1e-3, atol=1e-3, **how)
