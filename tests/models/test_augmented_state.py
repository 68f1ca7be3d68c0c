"""Integrals in the augmented state: against autograd, exact solutions, and one gradient mode against another."""

import warnings

import pytest
import torch
from torch import nn

from odebench import ode
from odebench.models.augmented_state import (
    AugmentedField,
    FieldEvaluation,
    exact_trace,
    hutchinson_trace,
    zero_integrals,
)
from odebench.models.cnf import GatedField
from odebench.models.concatsquash import ConcatSquashConv, ConcatSquashMLP
from odebench.models.dynamics import jacobian_norm
from odebench.ode import Rows, solve

T = torch.tensor(0.3, dtype=torch.float64)
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


class Field(nn.Module):
    """A small network of z and time (a scalar, or one for each row) that counts its evaluations."""

    def __init__(self, dim):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim + 1, 8), nn.Tanh(), nn.Linear(8, dim)).double()
        self.calls = 0

    def forward(self, t, z):
        self.calls += 1
        return self.layers(torch.cat([z, t.expand(len(z)).unsqueeze(1)], 1))


class ImageField(nn.Module):
    """A field of states [B, 2, 3, 3]."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1).double()

    def forward(self, t, z):
        return torch.tanh(self.conv(z)) * torch.cos(t).reshape(-1, 1, 1, 1)


class ClosedForm(nn.Module):
    """z' = a z^2, whose divergence is known."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t, z):
        raise AssertionError("the divergence gives f too")

    def divergence(self, t, z):
        return self.a * z.square(), (2 * self.a * z).sum(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def jacobians(field, t, z):
    """df/dz [B, n, n] of each row, row by row."""

    def flat(row, i):
        return field(t if t.dim() == 0 else t[i : i + 1], row.view(1, *z.shape[1:])).flatten()

    rows = [torch.autograd.functional.jacobian(lambda r, i=i: flat(r, i), z[i].flatten()) for i in range(len(z))]
    return torch.stack(rows)


CASES = {
    "vectors": (lambda: Field(3), (4, 3), T),
    "a time a row": (lambda: Field(3), (4, 3), torch.linspace(0, 1, 4, dtype=torch.float64)),
    "images": (ImageField, (2, 2, 3, 3), T),
}


@pytest.mark.parametrize("case", CASES)
def test_both_traces_equal_those_of_autograds_jacobian(case):
    make, shape, t = CASES[case]
    field, z, noise = make(), rand(*shape), rand(*shape)
    expected = jacobians(field, t, z)
    evaluation = FieldEvaluation(field, t, z, noise)
    torch.testing.assert_close(exact_trace(evaluation), expected.diagonal(dim1=1, dim2=2).sum(1))
    flat = noise.flatten(1)
    torch.testing.assert_close(
        hutchinson_trace(evaluation), torch.einsum("bi,bij,bj->b", flat, expected, flat), rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(evaluation.dz, field(t, z))


@pytest.mark.parametrize("integrands", [[exact_trace], [hutchinson_trace, hutchinson_trace], [exact_trace] * 2])
def test_an_evaluation_evaluates_the_field_once(integrands):
    field, z = Field(3), rand(4, 3)
    AugmentedField(field, integrands, rand(4, 3))(T, (z, *zero_integrals(z, len(integrands))))
    assert field.calls == 1


@pytest.mark.parametrize("noise", [None, torch.ones(4, 3, dtype=torch.float64)], ids=["alone", "with noise"])
def test_a_closed_form_divergence_replaces_the_batched_vjp(noise):
    field, z = ClosedForm(), rand(4, 3)
    evaluation = FieldEvaluation(field, T, z, noise)
    torch.testing.assert_close(evaluation.trace(), z.sum(1))
    torch.testing.assert_close(evaluation.dz, 0.5 * z.square())
    if noise is not None:
        torch.testing.assert_close(evaluation.noise_vjp(), z)


def test_the_log_determinant_of_a_linear_field_is_the_trace_of_its_matrix():
    matrix = rand(3, 3)
    z = rand(5, 3)
    solution = ode.solve(
        AugmentedField(lambda t, z: z @ matrix.T, [exact_trace]), (z, *zero_integrals(z, 1)), (0.0, 2.0), **TIGHT
    )
    torch.testing.assert_close(solution.y[1][-1], 2 * matrix.trace().expand(5))
    torch.testing.assert_close(solution.y[0][-1], z @ torch.linalg.matrix_exp(2 * matrix).T, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("integrand", [exact_trace, hutchinson_trace])
def test_gradients_of_an_integral_equal_finite_differences(integrand):
    field, noise = Field(2), rand(2, 2)
    names, parameters = zip(*field.named_parameters(), strict=True)

    def integral(z, *weights):
        evaluate = lambda t, y: torch.func.functional_call(field, dict(zip(names, weights, strict=True)), (t, y))  # noqa: E731
        solution = ode.solve(
            AugmentedField(evaluate, [integrand], noise), (z, *zero_integrals(z, 1)), (0.0, 1.0), method="rk4", steps=2
        )
        return solution.y[1][-1]

    z = rand(2, 2).requires_grad_()
    # Along one random direction: as strict, and one evaluation for all.
    leaves = (z, *(p.detach().requires_grad_() for p in parameters))
    assert torch.autograd.gradcheck(integral, leaves, fast_mode=True)


def gradient(field, integrand, **how):
    """The solution at the end and the gradient of a function of it."""
    torch.manual_seed(1)
    z, noise = rand(5, 3).requires_grad_(), rand(5, 3)
    solution = ode.solve(
        AugmentedField(field, [integrand]), (z, *zero_integrals(z, 1)), (0.0, 1.0), args=(Rows(noise),), **TIGHT, **how
    )
    loss = solution.y[0][-1].square().sum() + solution.y[1][-1].sum()
    gradients = torch.autograd.grad(loss, [z, *field.parameters()])
    return solution.y[1][-1].detach(), torch.cat([g.flatten() for g in gradients])


MODES = {
    "checkpoint": ({"gradient": "checkpoint"}, 1e-12),
    "adjoint": ({"gradient": "adjoint"}, 1e-6),
    "interpolated_adjoint": ({"gradient": "interpolated_adjoint"}, 1e-6),
    "reversible": ({"method": "reversible_dopri5", "gradient": "reversible"}, 1e-6),
    "per_sample": ({"stepping": "per_sample"}, 1e-6),
    "per_sample checkpoint": ({"stepping": "per_sample", "gradient": "checkpoint"}, 1e-6),
    "implicit": ({"method": "radauIIA5", "gradient": "adjoint"}, 1e-5),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("integrand", [exact_trace, hutchinson_trace])
def test_every_mode_gives_the_gradient_of_backprop(mode, integrand):
    how, tolerance = MODES[mode]
    field = Field(3)
    expected = gradient(field, integrand)
    for ours, theirs in zip(gradient(field, integrand, **how), expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance


@pytest.mark.parametrize("make", [lambda: Field(3), ClosedForm], ids=["by autograd", "closed form"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_a_graph_the_numbers_are_the_same(make, context):
    z, noise = rand(5, 3), rand(5, 3)
    augmented = AugmentedField(make(), [exact_trace, hutchinson_trace], noise)
    expected = augmented(T, (z, *zero_integrals(z, 2)))
    with context():
        found = augmented(T, (z, *zero_integrals(z, 2)))
    for ours, theirs in zip(found, expected, strict=True):
        assert not ours.requires_grad
        torch.testing.assert_close(ours, theirs)


def test_hooks_on_saved_tensors_work_and_change_nothing():
    field = Field(3)
    expected = gradient(field, exact_trace)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        found = gradient(field, exact_trace)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rows_that_outlast_the_others_keep_their_noise():
    field, z, noise = Field(3), rand(3, 3), rand(3, 3)
    times = torch.tensor([[0.0, 0.1], [0.0, 0.2], [0.0, 3.0]], dtype=torch.float64)
    augmented, state = AugmentedField(field, [hutchinson_trace], noise), (z, *zero_integrals(z, 1))
    found = ode.solve(augmented, state, times, args=(Rows(noise),), stepping="per_sample", **TIGHT)
    alone = ode.solve(
        AugmentedField(field, [hutchinson_trace], noise[2:]), (z[2:], *zero_integrals(z[2:], 1)), (0.0, 3.0), **TIGHT
    )
    torch.testing.assert_close(found.y[1][-1, 2:], alone.y[1][-1], rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match=r"args=\(Rows\(noise\),\)"):
        ode.solve(augmented, state, times, stepping="per_sample")


def test_arguments_after_the_noise_are_passed_to_the_field():
    scale = torch.tensor(2.0, dtype=torch.float64)
    z = rand(4, 3)
    augmented = AugmentedField(lambda t, z, a: a * z, [exact_trace])
    solution = ode.solve(augmented, (z, *zero_integrals(z, 1)), (0.0, 1.0), args=(None, scale), **TIGHT)
    torch.testing.assert_close(solution.y[1][-1], torch.full((4,), 6.0, dtype=torch.float64))


def test_integrals_are_in_the_order_of_their_integrands():
    z, noise = rand(4, 3), rand(4, 3)
    augmented = AugmentedField(Field(3), [exact_trace, hutchinson_trace], noise)
    evaluation = FieldEvaluation(augmented.field, T, z, noise)
    derivative = augmented(T, (z, *zero_integrals(z, 2)))
    for ours, theirs in zip(derivative, (evaluation.dz, evaluation.trace(), hutchinson_trace(evaluation)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_integrand_without_its_noise_raises_an_error():
    z = rand(4, 3)
    with pytest.raises(ValueError, match="needs noise"):
        AugmentedField(Field(3), [hutchinson_trace])(T, (z, *zero_integrals(z, 1)))


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: f.forward, lambda f: lambda t, z: f(t, z)])
def test_dropout_anywhere_in_the_field_raises_an_error(wrap):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, t, z):
            return self.dropout(z)

    z = rand(2, 3)
    with pytest.raises(ValueError, match="Dropout"):
        ode.solve(AugmentedField(wrap(Noisy()), [exact_trace]), (z, *zero_integrals(z, 1)), (0.0, 1.0))


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        pytest.param(GatedField(3, 8, 8), (3,), id="gated"),
        pytest.param(ConcatSquashMLP(3, (8, 8), "tanh"), (3,), id="tanh"),
        pytest.param(ConcatSquashMLP(3, (8,), "softplus"), (3,), id="softplus"),
        pytest.param(ConcatSquashConv(2, (3, 4), "softplus"), (2, 6, 6), id="images"),
    ],
)
def test_the_closed_form_of_a_vector_jacobian_product_is_the_automatic_one(field, shape):
    field, t = field.double(), torch.tensor(0.3, dtype=torch.float64)
    z, v = torch.rand(2, 5, *shape, dtype=torch.float64)
    dz, vjp = torch.func.vjp(lambda z: field(t, z), z)
    torch.testing.assert_close(field.vjp(t, z, v), (dz, vjp(v)[0]))


@pytest.mark.compiler
def test_closed_forms_are_captured_inside_the_loop_over_steps(monkeypatch):
    """Where torch cannot capture its own derivatives: the loop also writes its steps to memory."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: compile(f, fullgraph=True, backend="aot_eager"))
    field = AugmentedField(ConcatSquashMLP(2, (4,), "tanh"), [exact_trace, hutchinson_trace, jacobian_norm])
    z, results = torch.rand(3, 2), []
    for how in (False, "solve"):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="compile=")
            state, options = (z, *zero_integrals(z, 3)), {"method": "bosh3", "rtol": 1e-2, "compile": how}
            y = solve(field, state, (0.0, 1.0), args=(torch.ones_like(z),), **options).y
        results.append((y, torch.autograd.grad(sum(x[-1].sum() for x in y), [*field.parameters()])))
    torch.testing.assert_close(results[1], results[0])
