"""A compiled step gives the results of the eager one."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from odebench.ode import Checkpoint, solve

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler (Debian: apt-get install g++)")
# Warnings of torch while its compiler starts.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch"
)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, t, y, scale):
        return self.net(y) * scale * torch.cos(t)


@pytest.fixture(scope="module")
def field():
    torch.manual_seed(0)
    return Field().double()


def run(field, times, gradient, **options):
    y0 = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2).requires_grad_()
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    solution = solve(field, y0, times, args=(scale,), gradient=gradient, **options)
    gradients = torch.autograd.grad((solution.y**2).sum(), [y0, scale, *field.parameters()])
    return solution, gradients


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("gradient", "times", "options"),
    [
        pytest.param("backprop", (0.0, 3.0), {}, id="ends"),
        pytest.param("backprop", (0.0, 0.1, 0.2, 3.0), {}, id="inside"),
        pytest.param(Checkpoint(), (0.0, 0.1, 0.2, 3.0), {}, id="checkpoint"),
        pytest.param("backprop", (0.0, 3.0), {"method": "rk4", "steps": 5}, id="fixed"),
        pytest.param("adjoint", (0.0, 0.1, 3.0), {}, id="adjoint"),
    ],
)
def test_states_gradients_and_counts_are_those_of_the_eager_step(field, gradient, times, options):
    eager, theirs = run(field, times, gradient, **options)
    compiled, ours = run(field, times, gradient, compile=True, **options)
    torch.testing.assert_close(compiled.y, eager.y, rtol=1e-9, atol=1e-10)
    assert compiled.stats.nfe == eager.stats.nfe
    assert compiled.stats.accepted == eager.stats.accepted
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
    with torch.no_grad():
        scale = torch.tensor(1.5, dtype=torch.float64)
        again = solve(field, eager.y[0], times, args=(scale,), compile=True, **options)
    torch.testing.assert_close(again.y, eager.y, rtol=1e-9, atol=1e-10)


@needs_compiler
@pytest.mark.slow
def test_a_step_is_compiled_once_for_a_field_and_a_shape(field):
    torch._dynamo.utils.counters.clear()
    for _ in range(3):
        run(field, (0.0, 2.0), "backprop", compile=True, rtol=1e-3, atol=1e-3)
        run(field, (0.0, 1.0), "backprop", compile=True, first_step=0.1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param({"atol": 0.0}, id="relative"),
        pytest.param({"atol": torch.full((4, 2), 1e-6)}, id="each"),
        pytest.param({"method": "dopri8"}, id="extra-stages"),
        pytest.param({"jump_t": (0.5,)}, id="jump"),
    ],
)
def test_the_compiled_function_takes_the_eager_steps(field, options, monkeypatch):
    field = copy.deepcopy(field)
    eager, theirs = run(field, (0.0, 0.1, 0.2, 3.0), "backprop", **options)
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    compiled, ours = run(field, (0.0, 0.1, 0.2, 3.0), "backprop", compile=True, **options)
    torch.testing.assert_close(compiled.y, eager.y, rtol=1e-9, atol=1e-10)
    assert compiled.stats.error_ratios == pytest.approx(eager.stats.error_ratios, rel=1e-3)
    assert compiled.stats.stiffness == pytest.approx(eager.stats.stiffness, rel=1e-3)
    assert compiled.stats.nfe == eager.stats.nfe
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"method": "rk4", "steps": 5}], ids=["adaptive", "fixed"])
def test_a_step_of_the_adjoint_gives_the_gradients_of_its_stages(field, options, monkeypatch):
    field = copy.deepcopy(field)
    _, eager = run(field, (2.0, 0.1, 0.0), "adjoint", **options)
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    solution, gradients = run(field, (2.0, 0.1, 0.0), "adjoint", compile=True, **options)
    backward = solution.stats.backward
    assert backward.nfe == (4 if options else 7) * (backward.accepted + backward.rejected)
    for one, other in zip(gradients, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_an_adjoint_with_saved_tensor_hooks_takes_the_eager_steps(field):
    eager = run(field, (0.0, 1.0, 3.0), "adjoint")[1]
    with torch.compiler.set_stance("force_eager"), saved_tensors_hooks(lambda x: x, lambda x: x):
        with_hooks = run(field, (0.0, 1.0, 3.0), "adjoint", compile=True)[1]
    for one, other in zip(with_hooks, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_the_adjoint_of_a_function_that_is_not_a_module_is_not_compiled(field, monkeypatch):
    def free(t, y, scale):
        return field(t, y, scale)

    free.parameters = field.parameters
    eager, expected = run(free, (0.0, 2.0), "adjoint")
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    solution, gradients = run(free, (0.0, 2.0), "adjoint", compile=True)
    assert solution.stats.backward.nfe == eager.stats.backward.nfe
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_what_cannot_be_compiled_raises_an_error(field):
    with pytest.raises(ValueError, match="compile: only steps of explicit Runge-Kutta methods"):
        run(field, (0.0, 1.0), "backprop", method="gl4", steps=3, compile=True)
    with pytest.raises(ValueError, match="a compiled step has no graphs of its own"):
        run(field, (0.0, 1.0), Checkpoint(keep="graphs"), compile=True)
    with pytest.raises(ValueError, match="must be hashable"):
        solve(lambda t, y, c: -c[0] * y, torch.ones(2), (0.0, 1.0), args=({1, 2},), compile=True)
