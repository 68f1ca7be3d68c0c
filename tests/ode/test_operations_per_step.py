"""The cost of a solve apart from the field: tensor operations, synchronisations with the device, Python calls."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from odebench.ode import solve
from odebench.ode.methods.explicit_stepper import ExplicitRungeKuttaStepper

VIEWS = {
    "view",
    "select",
    "slice",
    "t",
    "unbind",
    "split",
    "reshape",
    "alias",
    "detach",
    "_unsafe_view",
    "expand",
    "as_strided",
    "split_with_sizes",
}


class StepOperationCounter(TorchDispatchMode):
    """Counts the operations that are not views, except those inside the field."""

    def __init__(self):
        super().__init__()
        self.operations, self.syncs, self.in_field = 0, 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not self.in_field and name == "_local_scalar_dense":
            self.syncs += 1
        elif not self.in_field and name not in VIEWS:
            self.operations += 1
        return func(*args, **(kwargs or {}))


def cost_of_a_step(method, y0):
    """Operations and synchronisations per step, from two solves with different numbers of steps."""

    def cost(end):
        with StepOperationCounter() as count, torch.no_grad():

            def field(t, y):
                count.in_field = True
                rate = tree_map(torch.sin, y)
                count.in_field = False
                return rate

            # Steps bounded from above, so that each is accepted.
            options = {"rtol": 1e-3, "atol": 1e-3, "first_step": 0.01, "max_step": 0.01}
            stats = solve(field, y0, [0.0, end], method=method, **options).stats
        assert stats.rejected == 0
        return stats.accepted, count.operations, count.syncs

    (few, *low), (many, *high) = cost(0.1), cost(1.1)
    return [(b - a) / (many - few) for a, b in zip(low, high, strict=True)]


@pytest.mark.parametrize("y0", [torch.ones(3), (torch.ones(2, 2), torch.ones(3))], ids=["tensor", "tuple"])
@pytest.mark.parametrize(("method", "most"), [("dopri5", 20), ("tsit5", 20), ("bosh3", 14)])
def test_a_step_costs_few_operations_and_one_synchronisation(method, most, y0):
    operations, syncs = cost_of_a_step(method, y0)
    assert operations <= most
    assert syncs == 1


@pytest.mark.parametrize(("method", "steps", "most"), [("euler", 1, 95), ("dopri5", None, 120)])
def test_a_solve_makes_few_calls_before_its_first_step(method, steps, most, monkeypatch):
    calls = 0

    class FirstStep(Exception):
        pass

    def count_calls(frame, event, _):
        nonlocal calls
        calls += event == "call" and frame.f_globals["__name__"].startswith("odebench.")

    def attempt(*_):
        raise FirstStep

    def solve_until_first_step():
        with pytest.raises(FirstStep), torch.no_grad():
            solve(lambda t, y: -y, torch.ones(3), [0.0, 1.0], method=method, steps=steps)

    monkeypatch.setattr(ExplicitRungeKuttaStepper, "attempt", attempt)
    solve_until_first_step()
    before = sys.getprofile()
    sys.setprofile(count_calls)
    try:
        solve_until_first_step()
    finally:
        sys.setprofile(before)
    assert calls <= most
