"""Every method with every gradient mode: the right gradient or an error, never a wrong number.

Two errors, kept apart: that against the discrete solve at hand, which the exact modes do not have, and that against
the differential equation, which all modes have and which falls with the tolerance.
"""

import functools
import itertools

import pytest
import torch
from torch import nn

from odebench.ode import GRADIENTS, METHODS, Tableau, solve
from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.scipy_methods import SciPyMethod
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solving import finish, prepare

CONTINUOUS = ["adjoint", "interpolated_adjoint"]
TIMES = {"forward": (0.0, 0.17, 0.4, 0.5), "backward": (0.5, 0.4, 0.17, 0.0)}
QUICK = [
    *(("dopri5", mode) for mode in GRADIENTS),
    *(("rk4", mode) for mode in ("backprop", "checkpoint", "adjoint")),
    *(("reversible_dopri5", "reversible"), ("alf", "reversible"), ("gl4", "checkpoint"), ("rodas4", "backprop")),
    *(("kvaerno5", "backprop"), ("adams", "checkpoint"), ("scipy_lsoda", "backprop"), ("scipy_lsoda", "adjoint")),
]
PAIRS = [
    pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow, id="-".join(pair))
    for pair in itertools.product(METHODS, GRADIENTS)
]


class Field(nn.Module):
    """Smooth, nonlinear and time-dependent, for a pair of states."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3, -0.8], [0.9, 0.2]], dtype=torch.float64))

    def forward(self, t, y, options):
        first, second = y["pair"]
        rate = torch.tanh(options["scale"] * self.weight @ torch.cat((first, second)) + torch.cos(t))
        return {"pair": (rate[:1], rate[1:])}


def differentiate(method, mode, times, **kwargs):
    """The gradients with respect to both states, an argument, the times and the weight, concatenated."""
    field = Field()
    y0 = [torch.tensor([number], dtype=torch.float64, requires_grad=True) for number in (0.5, -0.4)]
    scale = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    solution = solve(field, {"pair": tuple(y0)}, t, args=({"scale": scale},), method=method, gradient=mode, **kwargs)
    y = torch.cat(solution.y["pair"], 1)
    weights = torch.tensor([1.0, 2.0, 3.0, -1.0, 0.5, 1.0], dtype=torch.float64).view(3, 2)
    loss = (y[1:] ** 2 * weights).sum() + torch.sin(y[1]).sum()
    gradients = torch.autograd.grad(loss, [*y0, scale, t, field.weight])
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


@functools.cache
def reference_gradient(times):
    return differentiate("dopri8", "backprop", times, rtol=1e-11, atol=1e-11)


def solver_kwargs(method):
    """Options of a solve: adaptive if the method is, with a tolerance that needs few steps."""
    if method.adaptive:
        tol = {1: 1e-3, 2: 1e-5, 3: 1e-5}.get(method.order, 1e-6 if method.stiff else 1e-8)
        return {"rtol": tol, "atol": tol}
    return {"steps": {1: 40, 2: 12, 3: 8}.get(method.order, 6)}


def expected_error(method):
    """Tolerance of the relative error of the gradient against that of the differential equation."""
    if method.name == "fehlberg2":
        return 2e-2  # It divides its error estimate by 512.
    if method.adaptive:
        return 100 * solver_kwargs(method)["rtol"]
    return {1: 3e-2, 2: 2e-3, 3: 1e-4}.get(method.order, 3e-4 if "adams" in method.name else 1e-5)


def is_unsupported(method, mode):
    if isinstance(method, SciPyMethod):
        return mode != "adjoint"
    if mode == "checkpoint":
        return not isinstance(method, Tableau) and not getattr(method, "one_step", False)
    return mode == "reversible" and not method.reversible


def step_kwargs(method, mode, times):
    """Options with which ``backprop`` takes exactly the steps of the mode."""
    return {"step_t": times[1:-1]} if mode == "reversible" and method.adaptive else {}


@pytest.mark.parametrize(("name", "mode"), PAIRS)
def test_a_method_and_a_mode_give_the_right_gradient_or_raise(name, mode):
    method = METHODS[name]
    if isinstance(method, SciPyMethod):
        pytest.importorskip("scipy")
    kwargs = solver_kwargs(method)
    if is_unsupported(method, mode):
        with pytest.raises(ValueError, match="choose ") as caught:
            differentiate(name, mode, TIMES["forward"], **kwargs)
        assert f"gradient={mode!r}" in str(caught.value) or name in str(caught.value)
        return
    for times in TIMES.values():
        found, reference = differentiate(name, mode, times, **kwargs), reference_gradient(times)
        assert float((found - reference).norm() / reference.norm()) < expected_error(method)
        if mode not in CONTINUOUS and mode != "backprop":
            exact = differentiate(name, "backprop", times, **kwargs, **step_kwargs(method, mode, times))
            # Implicit stages are solved to a fraction of the tolerance without a graph, to round-off with one.
            slack = 10 * kwargs["rtol"] if method.adaptive and isinstance(method, ImplicitTableau) else 1e-10
            if not method.adaptive:
                # The gradient with respect to times: of the discrete solve by backprop, else of the exact solution.
                found, exact = (torch.cat([gradient[:3], gradient[3 + len(times) :]]) for gradient in (found, exact))
            torch.testing.assert_close(found, exact, rtol=slack, atol=slack)


FIXED = [name for name, method in METHODS.items() if not isinstance(method, SciPyMethod) and name != "adams"]


@pytest.mark.parametrize(
    "name", [name if name in ("rk4", "alf") else pytest.param(name, marks=pytest.mark.slow) for name in FIXED]
)
def test_backprop_equals_finite_differences_of_the_discrete_solve(name):
    field = Field()
    tensors = [torch.tensor([0.5, -0.4], dtype=torch.float64), torch.tensor(1.2, dtype=torch.float64)]
    tensors.append(field.weight.detach().clone())
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(tensor.shape, dtype=torch.float64, generator=generator) for tensor in tensors]

    def loss(shift):
        y0, scale, weight = (x + shift * direction for x, direction in zip(tensors, directions, strict=True))

        def f(t, y, options):
            return torch.func.functional_call(field, {"weight": weight}, (t, y, options))

        state = {"pair": (y0[:1], y0[1:])}
        y = torch.cat(solve(f, state, TIMES["forward"], args=({"scale": scale},), method=name, steps=6).y["pair"], 1)
        return (y**2).sum() + torch.sin(y[1]).sum()

    at = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(at), at)
    eps = 1e-5
    with torch.no_grad():
        difference = float(loss(eps) - loss(-eps)) / (2 * eps)
    assert float(slope) == pytest.approx(difference, rel=1e-7)


@functools.cache
def final_gradient(mode, tol, method="dopri5", **kwargs):
    """The gradient of a loss of the last state of a longer solve, with respect to the start and the weight."""
    field = Field()
    y0 = torch.tensor([0.5, -0.4], dtype=torch.float64, requires_grad=True)

    def loss(y):
        return (y[-1] ** 2).sum() + y[-1][0]

    weight = field.weight

    def f(t, y):
        return torch.tanh(2 * weight @ y + torch.cos(2 * t))

    solution = solve(f, y0, [0.0, 4.0], method=method, gradient=mode, rtol=tol, atol=tol, **kwargs)
    gradients = torch.autograd.grad(loss(solution.y), [y0, weight])
    return torch.cat([gradient.reshape(-1) for gradient in gradients]), solution.stats.step_sizes


@pytest.mark.slow
@pytest.mark.parametrize("mode", GRADIENTS)
def test_every_mode_approaches_the_gradient_of_the_equation_as_the_tolerance_falls(mode):
    method = "reversible_dopri5" if mode == "reversible" else "dopri5"
    reference, _ = final_gradient("backprop", 1e-11, "dopri8")
    errors = []
    for tol in (1e-3, 1e-5, 1e-7, 1e-8):
        found, _ = final_gradient(mode, tol, method)
        errors.append(float((found - reference).norm() / reference.norm()))
    assert errors[0] < 0.5
    assert errors[-1] < 1e-6
    assert all(later < earlier / 5 for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_the_exact_modes_are_exact_for_the_steps_taken_however_loose_the_tolerance(tol):
    found, sizes = final_gradient("backprop", tol)
    again, _ = final_gradient("checkpoint", tol)
    torch.testing.assert_close(again, found, rtol=1e-10, atol=1e-10)
    # The same steps again, as a function of the start and the weight only.
    grid = [0.0, *itertools.accumulate(sizes)]
    grid[-1] = 4.0

    def loss(y0, weight):
        def f(t, y):
            return torch.tanh(2 * weight @ y + torch.cos(2 * t))

        plan = SolvePlan(METHODS["dopri5"].for_fixed_steps(), tolerance=None, grid=lambda times: grid)
        problem = InitialValueProblem(f, y0, [0.0, 4.0], ())
        mode = GRADIENTS["backprop"]()
        prepare(problem, plan, mode, None)
        y = finish(problem, plan, mode, None, mode.solve_with_gradient(ForwardSolve(problem, plan))).y
        return (y[-1] ** 2).sum() + y[-1][0]

    y0, weight = torch.tensor([0.5, -0.4], dtype=torch.float64), Field().weight.detach()
    eps = 1e-6
    differences = []
    with torch.no_grad():
        for i in range(6):
            step = torch.zeros(6, dtype=torch.float64)
            step[i] = eps
            ends = [loss(y0 + sign * step[:2], weight + sign * step[2:].view(2, 2)) for sign in (1, -1)]
            differences.append(float(ends[0] - ends[1]) / (2 * eps))
    torch.testing.assert_close(found, torch.tensor(differences).double(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ["dopri5", "trbdf2", "kvaerno3", "rodas4", "adams", "reversible_dopri5"])
def test_estimating_the_first_step_does_not_change_the_gradient(method):
    """The slope used for the estimate is reused by the first step, with its graph."""
    found, sizes = final_gradient("backprop", 1e-3, method)
    given, same_sizes = final_gradient("backprop", 1e-3, method, first_step=sizes[0])
    assert same_sizes == pytest.approx(sizes, rel=1e-9)
    torch.testing.assert_close(found, given, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mode", GRADIENTS)
def test_gradients_repeat_to_the_last_bit(mode):
    method = "reversible_dopri5" if mode == "reversible" else "dopri5"
    first, second = (final_gradient.__wrapped__(mode, 1e-4, method)[0] for _ in range(2))
    assert torch.equal(first, second)


# Transforms of torch.func over solves with fixed steps.

A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
STARTS = torch.tensor([[2.0, 0.5], [1.0, -1.0], [0.0, 3.0]], dtype=torch.float64)


def end_of(y0, weight=A, method="rk4"):
    return solve(lambda t, y, w: torch.tanh(w @ y + t), y0, [0.0, 0.4, 1.0], args=(weight,), method=method, steps=6).y


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5", "explicit_adams"])
def test_vmap_over_a_fixed_step_solve_equals_separate_solves(method, grad):
    with torch.set_grad_enabled(grad):
        mapped = torch.func.vmap(functools.partial(end_of, method=method))(STARTS)
        each = torch.stack([end_of(start, method=method) for start in STARTS])
    torch.testing.assert_close(mapped, each, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_vmap_over_weights_is_an_ensemble(grad):
    weights = torch.stack((A, 2 * A))
    with torch.set_grad_enabled(grad):
        mapped = torch.func.vmap(end_of, in_dims=(None, 0))(STARTS[0], weights)
        each = torch.stack([end_of(STARTS[0], weight) for weight in weights])
    torch.testing.assert_close(mapped, each, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "implicit_adams", "alf", "reversible_rk4"])
@pytest.mark.slow  # the first jvp of a process imports for seconds
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, in jvp
def test_forward_and_reverse_derivatives_of_a_fixed_step_solve_agree(method):
    f = functools.partial(end_of, method=method)
    value, tangent = torch.func.jvp(f, (STARTS[0],), (STARTS[1],))
    jacobian = torch.func.jacrev(f)(STARTS[0])
    torch.testing.assert_close(value, f(STARTS[0]), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(tangent, jacobian @ STARTS[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.func.jacfwd(f)(STARTS[0]), jacobian, rtol=1e-12, atol=1e-12)


def test_gradients_of_single_samples_by_vmap():
    def loss(y0):
        return (end_of(y0) ** 2).sum()

    each = torch.stack([torch.func.grad(loss)(start) for start in STARTS])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(STARTS), each, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("what", ["state", "weight"])
def test_vmap_over_adaptive_steps_raises(what):
    def end(y0, weight):
        return solve(lambda t, y, w: w @ y, y0, [0.0, 1.0], args=(weight,)).y

    arguments, dims = {"state": ((STARTS, A), (0, None)), "weight": ((STARTS[0], torch.stack((A, A))), (None, 0))}[what]
    with pytest.raises(ValueError, match=r"torch.func.vmap.*give steps or step_size"):
        torch.func.vmap(end, in_dims=dims)(*arguments)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "reversible_heun", "explicit_adams"])
def test_backprop_is_differentiable_twice(method):
    weight = A.clone().requires_grad_()

    def end(y0, weight):
        return end_of(y0, weight, method)[-1]

    assert torch.autograd.gradgradcheck(end, (STARTS[0].clone().requires_grad_(), weight), atol=1e-6)
