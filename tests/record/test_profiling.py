import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from odebench.record.profiling import MIB, StepTimer, measure_step

BATCH, WIDTH = 1024, 32
ACTIVATION = 4 * BATCH * WIDTH
WEIGHT, BIAS = 4 * WIDTH * WIDTH, 4 * WIDTH


def nbytes(numbers: dict[str, float], name: str) -> float:
    return numbers[f"memory/{name}_mib"] * MIB


def chain_step(depth: int):
    """Training step of `depth` Linear + ReLU layers on data allocated before."""
    net = nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())])
    x = torch.randn(BATCH, WIDTH)

    def step() -> None:
        net.zero_grad()
        net(x).sum().backward()

    return step


@pytest.mark.parametrize("depth", [2, 3, 8, 20])
def test_the_memory_of_a_chain_is_exact_to_the_byte(depth):
    numbers = measure_step(chain_step(depth), "cpu")
    # Each ReLU saves its output; each Linear its input, the same storage (the first one's is the data).
    assert nbytes(numbers, "saved") == depth * ACTIVATION
    # The peak is in the last Linear's backward: the outputs of the ReLUs before it, gradients of its output,
    # input, weight and bias; besides, the loss and its gradient, a float each.
    assert nbytes(numbers, "peak") == (depth + 1) * ACTIVATION + WEIGHT + BIAS + 8
    forward_flops = depth * 2 * BATCH * WIDTH * WIDTH
    assert numbers["flops/step"] == 3 * forward_flops - 2 * BATCH * WIDTH * WIDTH  # no gradient for the data


def gradients(net: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


def test_measuring_twice_gives_the_same_and_does_not_change_the_gradients():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    x = torch.randn(2, 1, 12, 12)

    def step() -> None:
        net.zero_grad()
        net(x).square().mean().backward()

    step()
    plain = gradients(net)
    first = measure_step(step, "cpu")
    assert all(map(torch.equal, plain, gradients(net)))
    assert measure_step(step, "cpu") == first


def test_flops_are_those_of_flop_counter_mode():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    x, tokens = torch.randn(2, 1, 6, 6), torch.randn(2, 5, 4)

    def step() -> None:
        (net(x).sum() + attention(tokens, tokens, tokens)[0].sum()).backward()
        with torch.inference_mode():
            net(x)

    with FlopCounterMode(display=False) as counter:
        step()
    assert counter.get_total_flops() > 0
    assert measure_step(step, "cpu")["flops/step"] == counter.get_total_flops()


class Field(nn.Module):
    """A vector field with one hidden layer, called many times."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.net(y)


class Adjoint(torch.autograd.Function):
    """Euler's method; the backward pass is the continuous adjoint, by nested torch.autograd.grad."""

    @staticmethod
    def forward(ctx, field, steps, y, *parameters):
        ctx.field, ctx.steps = field, steps
        for _ in range(steps):
            y = y + field(y) / steps
        ctx.save_for_backward(y, *parameters)
        return y

    @staticmethod
    def backward(ctx, a):
        y, *parameters = ctx.saved_tensors
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        for _ in range(ctx.steps):
            with torch.enable_grad():
                y = y.detach().requires_grad_()
                k = ctx.field(y)
            # retained, as some solvers do: the graph must be freed with its last reference
            a_dot, *gradients = torch.autograd.grad(k, (y, *parameters), a, retain_graph=True)
            sums = [total + gradient / ctx.steps for total, gradient in zip(sums, gradients, strict=True)]
            y, a = y.detach() - k.detach() / ctx.steps, a + a_dot / ctx.steps
        return None, None, a, *sums


def solve_step(steps: int, adjoint: bool):
    field, x = Field(), torch.randn(BATCH, WIDTH)

    def step() -> None:
        field.zero_grad()
        y = x.clone().requires_grad_()
        if adjoint:
            y = Adjoint.apply(field, steps, y, *field.parameters())
        else:
            for _ in range(steps):
                y = y + field(y) / steps
        y.sum().backward()

    return step


def test_the_continuous_adjoint_is_flat_in_steps_and_backprop_grows_by_the_same_each_step():
    steps = (4, 8, 16)
    adjoint = [measure_step(solve_step(n, adjoint=True), "cpu") for n in steps]
    backprop = [measure_step(solve_step(n, adjoint=False), "cpu") for n in steps]
    for name in ("peak", "saved"):
        assert len({nbytes(numbers, name) for numbers in adjoint}) == 1
        sizes = [nbytes(numbers, name) for numbers in backprop]
        # a step saves the field's input and the output of tanh
        assert [(b - a) / ACTIVATION for a, b in pairwise(sizes)] == [8, 16]
    assert nbytes(adjoint[0], "saved") < nbytes(backprop[0], "saved")


def test_only_tensors_allocated_in_the_step_count():
    old = torch.randn(1000)
    kept: list[torch.Tensor] = []

    def look() -> None:
        old.add_(1).view(10, 100)[3].mul_(2)

    def make() -> None:
        kept.append(torch.empty(0))
        torch.mul(old, 2, out=kept[0])  # resized by the operation
        kept.append(torch.tensor([1.0, 2.0]))
        kept.append(torch.empty(10).resize_(250))
        old + 1  # freed at once

    assert measure_step(look, "cpu") == {"memory/peak_mib": 0, "memory/saved_mib": 0, "flops/step": 0}
    assert nbytes(measure_step(make, "cpu"), "peak") == 4000 + 8 + 1000 + 4000


def test_a_tensor_saved_twice_counts_once_and_parameters_never():
    weight = nn.Parameter(torch.randn(100, 100))
    x = torch.randn(10, 100)

    def step() -> None:
        y = x * 2  # 4,000 bytes
        ((y @ weight.t()) + (y @ weight)).sum().backward()

    assert nbytes(measure_step(step, "cpu"), "saved") == 4000


def test_a_failing_step_removes_all_hooks():
    def fail() -> None:
        raise RuntimeError("solve failed")

    with pytest.raises(RuntimeError, match="solve failed"):
        measure_step(fail, "cpu")
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    node: Any = (torch.ones(3, requires_grad=True) * torch.ones(3)).grad_fn
    assert isinstance(node._saved_other, torch.Tensor)  # saved directly, without the hooks


def test_measuring_does_not_change_second_derivatives():
    x = torch.linspace(-1, 1, 7, requires_grad=True)
    seconds: list[torch.Tensor] = []

    def step() -> None:
        (first,) = torch.autograd.grad((x.tanh() * x).exp().sum(), x, create_graph=True)
        seconds.extend(torch.autograd.grad(first.sum(), x))

    step()
    measure_step(step, "cpu")
    assert torch.equal(*seconds)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_reads_the_allocator():
    x = torch.randn(2**20, device="cuda")
    numbers = measure_step(lambda: (x + 1) * 2, "cuda")
    assert numbers["memory/peak_mib"] == 8


def test_the_timer_gives_the_mean_of_the_steps_alone(monkeypatch):
    clock = iter([0.0, 0.010, 5.0, 5.030])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timer = StepTimer()
    assert timer.read() == {}
    for _ in range(2):
        timer.start()
        timer.stop(num_samples=128)
    assert timer.read() == {
        "time/step_ms": pytest.approx(20),
        "throughput/samples_per_s": pytest.approx(256 / 0.04),
    }
    assert timer.read() == {}
