"""Solves on a device other than the CPU, on a test double: the same numbers, and how often the host waits."""

import itertools

import pytest
import torch
from device_double import DEVICE, Accelerator
from torch import nn

from odebench.ode import GRADIENTS, METHODS, Tableau, solve

QUICK = [
    ("euler", "backprop"),
    *(("dopri5", mode) for mode in GRADIENTS),
    *((method, "backprop") for method in ("reversible_heun", "gl4", "adams")),
    *(("reversible_tsit5", "reversible"), ("rodas4", "interpolated_adjoint"), ("scipy_rk45", "adjoint")),
]
PAIRS = [
    pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow, id="-".join(pair))
    for pair in itertools.product(METHODS, GRADIENTS)
]
QUICK_DENSE = ["dopri5", "kvaerno5"]
EXPLICIT = [name for name, method in METHODS.items() if isinstance(method, Tableau)]
TIMES = [0.0, 0.3, 0.55, 1.0]


def some_slow(names, quick):
    """Parameters: those not in ``quick`` are slow."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        weight = [[0.3, -0.8], [0.9, 0.2]]
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, t, y):
        return torch.tanh(y @ self.weight) * torch.cos(t.reshape(-1, 1)) - y


def initial_state(device):
    return torch.tensor([[1.0, 2.0], [0.3, 0.5], [0.1, 0.7]], dtype=torch.float64).to(device)


def states_and_gradients(device, **options):
    """The states, and the gradients of a loss with respect to the initial state and the weight, on the CPU."""
    field, y0 = Field().to(device), initial_state(device).requires_grad_()
    states = solve(field, y0, TIMES, **options).y
    return [x.detach().cpu() for x in (states, *torch.autograd.grad(states.sin().sum(), [y0, field.weight]))]


def result_or_refusal(device, **options):
    """``states_and_gradients``, or the message of the error for a combination that the solver refuses."""
    try:
        return states_and_gradients(device, **options), ""
    except ValueError as error:
        return [], str(error)


def assert_device_gives_the_numbers_of_the_cpu(**options):
    """Bit for bit."""
    expected, refusal = result_or_refusal("cpu", **options)
    with Accelerator():
        found, refusal_there = result_or_refusal(DEVICE, **options)
    assert refusal_there == refusal
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x + torch.ones(2),
        lambda x: torch.cat([x, torch.ones(2)]),
        lambda x: x @ torch.ones(2),
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda x: torch.randn(2, device=DEVICE, generator=torch.Generator()),
    ],
)
def test_the_double_refuses_what_a_gpu_refuses(operation):
    with Accelerator(), pytest.raises(RuntimeError, match=r"[Ee]xpected .*testdevice"):
        operation(torch.ones(2, device=DEVICE))


def test_a_field_with_a_tensor_on_the_cpu_fails():
    offset = torch.ones(2)
    with Accelerator(), pytest.raises(RuntimeError, match="same device"):
        solve(lambda t, y: y + offset, torch.ones(2, device=DEVICE), [0.0, 1.0])


def test_the_double_counts_reads_and_copies():
    with Accelerator() as device:
        x = torch.ones(2, device=DEVICE)
        x = x * 2 + torch.tensor(1.0)  # a CPU scalar is an argument of the kernel
        assert (device.reads.total(), device.copies.total()) == (0, 0)
        _ = x.new_tensor([1.0]), torch.tensor([1.0], device=DEVICE), x[torch.tensor([0])], x.copy_(torch.zeros(2))
        assert (device.reads.total(), device.copies.total()) == (0, 4)
        _ = torch.zeros(2).to(DEVICE, non_blocking=True), x.copy_(torch.zeros(2), non_blocking=True)
        assert (device.reads.total(), device.copies.total(), device.queued.total()) == (0, 4, 2)
        _ = x.tolist(), x.sum().item(), bool((x > 1).any()), x.cpu(), x.nonzero(), x[x > 1]
        assert (device.reads.total(), device.copies.total()) == (6, 4)


@pytest.mark.parametrize(("method", "gradient"), PAIRS)
def test_fixed_steps(method, gradient):
    assert_device_gives_the_numbers_of_the_cpu(method=method, gradient=gradient, steps=5)


@pytest.mark.parametrize(("method", "gradient"), [p for p in PAIRS if METHODS[p.values[0]].adaptive])
def test_adaptive_steps(method, gradient):
    assert_device_gives_the_numbers_of_the_cpu(method=method, gradient=gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [5, None], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
@pytest.mark.parametrize("method", some_slow(EXPLICIT, ["tsit5"]))
def test_per_sample_steps(method, gradient, steps):
    assert_device_gives_the_numbers_of_the_cpu(method=method, gradient=gradient, steps=steps, stepping="per_sample")


@pytest.mark.parametrize("stepping", ["shared", "per_sample"])
def test_events(stepping):
    def event_time(device):
        crossing = (lambda t, y: y[:, 0] - 0.2) if stepping == "per_sample" else (lambda t, y: y[0, 0] - 0.2)
        y0 = initial_state(device).requires_grad_()
        found = solve(Field().to(device), y0, [0.0, 5.0], event=crossing, stepping=stepping).events[0].t
        return [found.detach().cpu(), torch.autograd.grad(found.nansum(), y0)[0].cpu()]

    expected = event_time("cpu")
    with Accelerator():
        found = event_time(DEVICE)
    assert all(torch.allclose(a, b, rtol=1e-14, atol=0, equal_nan=True) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("method", some_slow(["dopri5", "dopri8", "bosh3", "rk4", "kvaerno5", "adams"], QUICK_DENSE))
def test_dense_output(method):
    def states(device):
        steps = None if METHODS[method].adaptive else 4
        dense = solve(
            Field().to(device), initial_state(device), [0.0, 1.0], method=method, steps=steps, dense=True
        ).dense
        return torch.stack([dense(0.37), *dense(torch.tensor([0.1, 0.9], dtype=torch.float64))]).detach().cpu()

    expected = states("cpu")
    with Accelerator():
        assert torch.equal(states(DEVICE), expected)


def costs(few, many, needs_gradient, **options):
    """The additional attempts, reads and copies of a solve over a longer span, with its backward pass."""

    def cost(end):
        with Accelerator() as device, torch.set_grad_enabled(needs_gradient):
            solution = solve(Field().to(DEVICE), initial_state(DEVICE), [0.0, end], **options)
            if needs_gradient:
                solution.y.sum().backward()
        copies = device.copies.total() + device.queued.total()
        return solution.stats.accepted + solution.stats.rejected, device.reads.total(), copies

    cost(few)  # fills caches of coefficients, which are copied once
    return [b - a for a, b in zip(cost(few), cost(many), strict=True)]


@pytest.mark.parametrize("needs_gradient", [False, True], ids=["no_grad", "backprop"])
@pytest.mark.parametrize("method", some_slow(EXPLICIT, ["dopri5"]))
def test_fixed_steps_never_wait_for_the_device(method, needs_gradient):
    options = {"method": method, "step_size": 0.25}
    assert costs(1.0, 2.0, needs_gradient, **options) == [4, 0, 0]


@pytest.mark.parametrize("needs_gradient", [False, True], ids=["no_grad", "backprop"])
@pytest.mark.parametrize("method", some_slow([m for m in EXPLICIT if METHODS[m].adaptive], ["dopri5"]))
def test_adaptive_steps_wait_once_per_attempt(method, needs_gradient):
    options = {"method": method, "rtol": 1e-4, "atol": 1e-4, "max_step": 0.25}
    attempts, reads, copies = costs(1.0, 2.0, needs_gradient, **options)
    assert attempts >= 4
    assert (reads, copies) == (attempts, 0)


@pytest.mark.parametrize("method", ["rk4", "alf", "explicit_adams"])
def test_a_gradient_with_respect_to_times_costs_one_copy(method):
    gradients, copies = [], []
    with Accelerator() as device:
        for place in ("cpu", DEVICE):
            field, y0 = Field().to(place), initial_state(place)
            for requires_grad in (False, True):
                t = torch.tensor(TIMES, dtype=torch.float64, requires_grad=requires_grad)
                before = device.copies.total()
                y = solve(field, y0, t, method=method, steps=9).y
                copies.append(device.copies.total() - before)
            gradients.append(torch.autograd.grad(y.sin().sum(), t)[0])
    assert torch.equal(*gradients)
    assert copies == [0, 0, 0, 1]
