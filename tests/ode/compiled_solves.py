"""Eager solves beside compiled ones."""

import logging
import shutil

import pytest
import torch
from torch import nn

from odebench.ode import Status, solve
from odebench.ode.compiled.graph import OLDEST_TORCH

needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None or torch.__version__ < OLDEST_TORCH,
    reason=f"no C++ compiler (Debian: apt-get install g++), or torch older than {OLDEST_TORCH}",
)


SLOW = pytest.mark.slow


def few(values, *quick):
    """Values of a parameter, or tuples of several parameters; without --slow only the quick ones."""
    return [
        value if value in quick else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=SLOW)
        for value in values
    ]


def each_with_few_times(methods, times, *quick):
    """Pairs of methods and times: the first quick method with all times, the others with the second times."""
    pairs = [(quick[0], t) for t in times] + [(method, times[1]) for method in methods if method != quick[0]]
    return few(pairs, *(pair for pair in pairs if pair[0] in quick))


class Network(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, t, y, scale):
        return self.net(y) * scale * torch.cos(3 * t)

    def twice(self, t, y, scale):
        return 2 * self(t, y, scale)


def both(f, y0, times, args=(), inputs=(), **options):
    """Two (solution, gradients of y0, args and inputs): eager and compiled."""
    results, inputs = [], [*inputs]
    for compile in (False, "solve"):
        solution = solve(f, y0, times, args=args, compile=compile, throw=False, **options)
        leaves = [x for x in (*torch.utils._pytree.tree_leaves((y0, args)), *inputs) if isinstance(x, torch.Tensor)]
        leaves = [x for x in leaves if x.requires_grad]
        gradients = ()
        if leaves:
            reached = solution.outcome.reached
            loss = sum(x[:reached].square().sum() for x in torch.utils._pytree.tree_leaves(solution.y))
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        results.append((solution, gradients))
    return results


def both_with_structures(dtype, **options):
    """``both`` for a state and arguments in nested structures; their gradients must agree."""

    def f(t, y, args, power):
        a, rest = y
        return a * args["rate"] + rest["b"].mean(), {"b": -(rest["b"] ** power) * t}

    torch.manual_seed(0)
    y0 = (torch.rand(2, 3, dtype=dtype, requires_grad=True), {"b": torch.rand(4, dtype=dtype)})
    args = ({"rate": torch.tensor(-0.7, dtype=dtype, requires_grad=True), "unused": torch.ones(2)}, 2)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    eager, compiled = both(f, y0, [0.0, 0.4, 1.0], args, **options)
    torch.testing.assert_close(compiled[0].y, eager[0].y, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(compiled[1], eager[1], rtol=tolerance, atol=tolerance)
    assert compiled[0].stats.nfe == eager[0].stats.nfe
    return eager[0], compiled[0]


def assert_sizes_share_a_graph(check, caplog, times, **options):
    """Solve states with other numbers of rows; check(eager, compiled) compares. The log names each compiled graph."""
    field, scale = Network(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    caplog.set_level(logging.INFO, "odebench")
    counts = []
    for rows in (3, 5, 8, 17):
        y0 = torch.linspace(-1, 1, 2 * rows, dtype=torch.float64).reshape(rows, 2).requires_grad_()
        for t in times:
            check(*both(field, y0, t, (scale,), field.parameters(), **options))
        counts.append(len(caplog.records))
    assert counts[2] == counts[-1]


def assert_equal(eager, compiled, tolerance=1e-9):
    (theirs, their_gradients), (ours, our_gradients) = eager, compiled
    close = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
    torch.testing.assert_close(ours.y, theirs.y, **close)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        assert (one is None) == (other is None) or theirs.outcome.reached == 1
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, **close)
    a, b = ours.stats, theirs.stats
    assert (a.nfe, a.accepted, a.rejected, a.start) == (b.nfe, b.accepted, b.rejected, b.start)
    # The error is a difference of nearly equal numbers.
    loose = {"rel": 1e5 * tolerance, "abs": 1e5 * tolerance, "nan_ok": True}
    assert a.step_sizes == pytest.approx(b.step_sizes, **loose)
    assert a.error_ratios == pytest.approx(b.error_ratios, **loose)
    for one, other in ((a.warm_step, b.warm_step), (a.stiffness, b.stiffness)):
        if one is not other and theirs.status is Status.success:
            assert one == pytest.approx(other, **loose)
    one, other = ours.outcome, theirs.outcome
    assert (one.status, one.reached, one.attempted) == (other.status, other.reached, other.attempted)
    ends = [(x.time, x.step_size, x.error_ratio) for x in (one, other)]
    assert ends[0] == pytest.approx(ends[1], **loose)


def assert_equal_backward(eager, compiled, tolerance=1e-9):
    """Compare the solutions, gradients, and the statistics of both passes."""
    assert_equal(eager, compiled, tolerance)
    theirs, ours = (solution.stats.backward for solution, _ in (eager, compiled))
    assert (ours.nfe, ours.accepted, ours.rejected) == (theirs.nfe, theirs.accepted, theirs.rejected)
    assert ours.start == theirs.start
    # The error is a difference of nearly equal numbers.
    loose = {"rel": 1e5 * tolerance, "abs": 1e5 * tolerance}
    assert ours.step_sizes == pytest.approx(theirs.step_sizes, **loose)
    assert ours.error_ratios == pytest.approx(theirs.error_ratios, **loose)
    if theirs.warm_step is None:  # fixed steps
        assert ours.warm_step is None
    else:
        assert ours.warm_step == pytest.approx(theirs.warm_step, **loose)


def start(requires_grad=True, dtype=torch.float64):
    y0 = torch.linspace(-1, 1, 6, dtype=dtype).reshape(3, 2).requires_grad_(requires_grad)
    return y0, torch.tensor(1.5, dtype=dtype, requires_grad=requires_grad)
