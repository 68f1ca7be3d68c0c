"""How often a solve waits for its device and copies numbers to it, on a test double of an accelerator.

What ``allowed_transfers.TABLE`` does not list must not occur, and what it lists must.
"""

import dataclasses
import itertools
from collections import Counter

import pytest
import torch
from allowed_transfers import TABLE, Case
from device_double import DEVICE, Accelerator
from test_devices import Field, initial_state

from odebench.ode import GRADIENTS, Tableau, solve
from odebench.ode.methods.adams import VariableOrderAdams
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.scipy_methods import SciPyMethod

# Two times lie inside adaptive steps of at most 0.25, and at the ends of fixed ones.
TIMES = [0.0, 0.3, 0.55, 1.5]
INSIDE, INTERVALS = 2, 3


def supported(case):
    """Whether the solver has this combination of method, gradient mode and steps."""
    method, gradient = case.method, case.gradient
    if (case.adaptive and not method.adaptive) or (not case.adaptive and case.of(SciPyMethod, VariableOrderAdams)):
        return False
    if case.per_sample:
        return case.of(Tableau) and gradient in ("no_grad", "backprop", "checkpoint")
    if case.of(SciPyMethod):
        return gradient in ("no_grad", "adjoint")
    if gradient == "checkpoint":
        return case.of(Tableau) or getattr(method, "one_step", False)
    return gradient != "reversible" or method.reversible


class AutonomousField(Field):
    def forward(self, t, y):
        return torch.tanh(y @ self.weight) - y


def measure(case, times):
    """For the forward and the backward pass: how often what happens, and the transfers by kind and place."""
    options = {"method": case.name, "stepping": "per_sample" if case.per_sample else "shared"}
    options |= {"rtol": 1e-3, "atol": 1e-3, "max_step": 0.25} if case.adaptive else {"step_size": 0.25}
    if case.gradient != "no_grad":
        options["gradient"] = case.gradient
    with Accelerator() as device, torch.set_grad_enabled(case.gradient != "no_grad"):
        field = (AutonomousField() if case.autonomous else Field()).to(DEVICE)
        y0 = initial_state(DEVICE).requires_grad_()
        device.copies.clear()
        solution = solve(field, y0, [case.direction * time for time in times], **options)
        forward = take_counts(device)
        if case.gradient != "no_grad":
            torch.autograd.grad(solution.y.sum(), [y0, field.weight])
    stats, backward = solution.stats, solution.stats.backward
    steps = [stats] if solution.rows is None else [solution.rows]
    attempts = int(torch.as_tensor(steps[0].accepted + steps[0].rejected).max())
    yield case, occurrences(case, attempts, stats), forward
    if case.gradient != "no_grad":
        attempts = backward.accepted + backward.rejected if backward and backward.accepted else attempts
        backward_case = dataclasses.replace(case, backward=True)
        yield backward_case, occurrences(backward_case, attempts, backward or stats), take_counts(device)


def take_counts(device):
    """The transfers so far by kind and place; sets the counters to zero."""
    counters = {"reads": device.reads, "copies": device.copies, "queued": device.queued}
    found = {(kind, place): count for kind, counter in counters.items() for place, count in counter.items()}
    for counter in counters.values():
        counter.clear()
    return found


def occurrences(case, attempts, stats):
    """How often each unit of ``Allowed`` occurs in a pass."""
    groups = [g for g in case.method.groups if case.method.a[g.start][g.start]] if case.of(ImplicitTableau) else []
    together = groups[0].stop - groups[0].start if groups else 1
    return {
        "solve": 1,
        "interval": INTERVALS,
        "inside": INSIDE if case.adaptive else 0,
        "attempt": attempts,
        "evaluation": stats.nfe,
        "iteration": (stats.nfe - (stats.jacobians or 0)) // together,
        "group": attempts * len(groups),
    }


def name_of(case):
    words = [case.name, case.gradient, "adaptive" if case.adaptive else "fixed"]
    words += ["per_sample"] * case.per_sample + ["decreasing"] * (case.direction < 0) + ["autonomous"] * case.autonomous
    return "-".join(words)


METHODS_OF_EACH_FAMILY = {
    "explicit Runge-Kutta": ["rk4", "dopri5", "vern7", "dopri8"],
    "Adams": ["explicit_adams", "implicit_adams", "adams"],
    "reversible": ["alf", "reversible_heun", "reversible_tsit5"],
    "implicit Runge-Kutta": ["gl4", "radauIIA5", "kvaerno5"],
    "Rosenbrock": ["rodas4"],
    "SciPy": ["scipy_rk45"],
}
FIRST_OF_EACH_FAMILY = [names[0] for names in METHODS_OF_EACH_FAMILY.values()]
CASES = [
    *itertools.starmap(
        Case,
        itertools.product(
            itertools.chain(*METHODS_OF_EACH_FAMILY.values()),
            ("no_grad", *GRADIENTS),
            (False, True),
            (False, True),
            (1, -1),
        ),
    ),
    *(
        Case("rodas4", gradient, adaptive=True, per_sample=False, autonomous=True)
        for gradient in ("no_grad", "adjoint")
    ),
]
QUICK = [
    *(Case("dopri5", gradient, adaptive=True, per_sample=False) for gradient in GRADIENTS),
    Case("dopri5", "backprop", adaptive=False, per_sample=False),
    Case("dopri5", "checkpoint", adaptive=True, per_sample=True),
    Case("rk4", "no_grad", adaptive=False, per_sample=True, direction=-1),
    Case("explicit_adams", "adjoint", adaptive=False, per_sample=False),
    Case("reversible_tsit5", "reversible", adaptive=False, per_sample=False),
    Case("gl4", "backprop", adaptive=False, per_sample=False),
    Case("rodas4", "interpolated_adjoint", adaptive=True, per_sample=False),
    Case("scipy_rk45", "no_grad", adaptive=True, per_sample=False),
]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name_of(case), marks=[] if case in QUICK else pytest.mark.slow)
        for case in CASES
        # Backward in time, one method of each family is enough.
        if supported(case) and (case.direction > 0 or case.name in FIRST_OF_EACH_FAMILY)
    ],
)
def test_only_listed_transfers(case):
    list(measure(case, [*TIMES[:-1], 0.6]))  # copies the coefficients
    for done, counts, transfers in measure(case, TIMES):
        allowed = Counter()
        for row in TABLE:
            if row.when(done):
                allowed[row.kind, f"ode/{row.place}"] += sum(getattr(row, unit) * n for unit, n in counts.items())
        excess = {key: (found, allowed[key]) for key, found in transfers.items() if found > allowed[key]}
        assert not excess, f"more than allowed in {done}, {counts}"
        missing = [key for key in allowed if key not in transfers]
        assert not missing, f"listed, but not found in {done}, {counts}"
