"""Compiled graphs: one for each of the first sizes and one for all others, faster math, torch's caches on disk."""

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from compiled_solves import Network, assert_equal, both, needs_compiler
from torch import nn

from odebench.ode import solve
from odebench.ode.compiled import fast_math, graph

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch"
)


class OfAnySize(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Network()

    def forward(self, t, state, args):
        y, total = state
        return self.net(t, y, args["scale"]) + args["noise"], y.square().sum(1, keepdim=True) - total


@pytest.mark.compiler
def test_further_sizes_share_one_graph(captured):
    field, num_graphs = OfAnySize(), []
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    options = {"method": "bosh3", "rtol": 1e-3}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for rows, num_times in ((8, 9), (5, 5), (7, 16), (9, 9), (8, 9), (5, 7), (20, 20), (21, 90), (12, 8)):
            y0 = torch.linspace(-1, 1, 2 * rows, dtype=torch.float64).reshape(rows, 2).requires_grad_()
            args = ({"scale": scale, "noise": torch.linspace(0, 1, rows, dtype=torch.float64).unsqueeze(1)},)
            state, times = (y0, torch.zeros(rows, 1, dtype=torch.float64)), torch.linspace(0, 1, num_times)
            assert_equal(*both(field, state, times, args, field.parameters(), **options))
            num_graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # Each size has a graph of the solve and one of the gradient. That for all others is captured again when the number
    # of times first differs.
    assert [n - num_graphs[0] for n in num_graphs] == [0, 2, 4, 4, 4, 4, 6, 6, 6]


@pytest.mark.slow
def test_a_field_for_few_sizes_runs_eagerly_at_others(captured):
    field = Network()

    def f(t, y, scale):
        if len(y) not in (8, 5) and y.sum() > 2:
            return field(t, y, scale)
        return field(t, y, scale) - y

    scale, caught = torch.tensor(1.5, dtype=torch.float64), []
    with torch.no_grad():
        for rows in (8, 5, 3, 4, 8, 5, 3):
            y0 = torch.linspace(-1, 1, 2 * rows, dtype=torch.float64).reshape(rows, 2)
            expected = solve(f, y0, (0.0, 1.0), args=(scale,))
            with warnings.catch_warnings(record=True) as caught_here:
                warnings.simplefilter("always", UserWarning)
                solution = solve(f, y0, (0.0, 1.0), args=(scale,), compile="solve")
            torch.testing.assert_close(solution.y, expected.y)
            caught += [(rows, str(warning.message)) for warning in caught_here]
    ((rows, message),) = caught
    assert rows == 3
    assert "has no effect on this solve for further sizes: torch cannot compile it: Data-dependent branching" in message


def largest_error_of_tanh(numbers):
    return (fast_math.tanh(numbers).double() - numbers.double().tanh()).abs().max().item()


def test_the_error_of_fast_tanh():
    """At every 997th number of float32 from 0 to 16."""
    numbers = torch.arange(0, 0x41800000, 997, dtype=torch.int32).view(torch.float32)
    assert 3e-7 < largest_error_of_tanh(numbers) < 4e-7
    assert torch.equal(fast_math.tanh(-numbers), -fast_math.tanh(numbers))
    small = numbers[(numbers > 1e-30) & (numbers < 0.1)]  # a training before this may have switched denormals off
    torch.testing.assert_close(fast_math.tanh(small), small.tanh(), rtol=4e-7, atol=0)
    assert fast_math.tanh(torch.tensor([1e30, math.inf, -math.inf])).tolist() == pytest.approx([1, 1, -1], abs=4e-7)
    assert fast_math.tanh(torch.tensor(math.nan)).isnan()
    assert fast_math.tanh(torch.ones(1, dtype=torch.float64)) is NotImplemented


@pytest.mark.slow
def test_the_documented_error_of_fast_tanh():
    """At all numbers of float32 from 2^-10 to 16; at smaller ones, test_the_error_of_fast_tanh bounds it."""
    bits = torch.arange(0x3A800000, 0x41800000, dtype=torch.int32)
    error = max(largest_error_of_tanh(part.view(torch.float32)) for part in bits.split(2**22))
    page = Path(__file__).parents[2] / "docs" / "compiling.md"
    assert f"{error:.1e}".replace("e-0", "e-") in page.read_text()


@pytest.mark.parametrize(("m", "k", "n"), [(20, 1, 50), (16, 4, 64), (20, 50, 2), (1, 64, 64)])
def test_small_matrix_products(m, k, n):
    torch.manual_seed(0)
    a, b, bias = torch.randn(m, k), torch.randn(k, n), torch.randn(n)
    torch.testing.assert_close(fast_math.mm(a, b), a @ b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast_math.addmm(bias, a, b), a @ b + bias, rtol=1e-5, atol=1e-5)
    assert fast_math.addmm(bias, a, b, alpha=2) is NotImplemented
    assert fast_math.mm(a.double(), b.double()) is NotImplemented


@pytest.mark.parametrize(("m", "k", "n"), [(128, 64, 64), (64, 2, 50)])
def test_large_matrix_products_are_left_to_torch(m, k, n):
    assert fast_math.mm(torch.ones(m, k), torch.ones(k, n)) is NotImplemented


def test_other_graphs_compile_without_fast_math(monkeypatch):
    from torch._inductor import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    seen, op = [], torch.ops.aten.tanh.default

    def compile(graph, inputs, **options):
        seen.append((select_decomp_table().get(op), torch.compiler.config.cache_key_tag))
        raise RuntimeError("no")

    monkeypatch.setattr(compile_fx, "compile_fx", compile)
    before = dict(select_decomp_table())
    with pytest.raises(RuntimeError, match="no"):
        fast_math.compile_with_fast_math(None, [])
    assert seen == [(fast_math.tanh, fast_math.CACHE_TAG)]
    assert (dict(select_decomp_table()), torch.compiler.config.cache_key_tag) == (before, "")


@needs_compiler
@pytest.mark.compiler
def test_fast_math_compiled_by_inductor():
    field, y0 = Network(torch.float32), torch.linspace(-1, 1, 6).reshape(3, 2).requires_grad_()
    options = {"args": (torch.tensor(1.5),), "method": "bosh3", "rtol": 1e-3, "atol": 1e-3}
    eager = solve(field, y0, (0.0, 0.3, 1.0), **options).y
    fast = solve(field, y0, (0.0, 0.3, 1.0), **options, compile="solve", compile_math="fast").y
    torch.testing.assert_close(fast, eager, rtol=1e-5, atol=1e-5)
    assert not torch.equal(fast, eager)
    gradients = [torch.autograd.grad(y.sum(), (y0, *field.net.parameters())) for y in (fast, eager)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.compiler
def test_further_sizes_compiled_by_inductor(monkeypatch):
    monkeypatch.setattr(graph, "STATIC_SIZES", 1)
    field, scale = Network(), torch.tensor(1.5, dtype=torch.float64)
    for rows in (3, 5, 4):
        y0 = torch.linspace(-1, 1, 2 * rows, dtype=torch.float64).reshape(rows, 2).requires_grad_()
        times = (0.0, 0.3, 1.0)
        assert_equal(*both(field, y0, times, (scale,), field.parameters(), method="bosh3", rtol=1e-3, atol=1e-3))


# A solve in a process of its own: its last state, and how many graphs torch found on disk and how many it compiled.
SCRIPT = """
import sys, warnings
import torch
from odebench.ode import solve

warnings.simplefilter("error", UserWarning)
warnings.filterwarnings("ignore", module="torch")

class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(2, 2)

    def forward(self, t, y):
        return float(sys.argv[1]) * torch.tanh(self.net(y))

y0 = torch.ones(3, 2, requires_grad=True)
y = solve(Field(), y0, (0.0, 1.0), method="bosh3", compile="solve", compile_math=sys.argv[2]).y
y.sum().backward()
counts = torch._dynamo.utils.counters["inductor"]
results = [x.flatten().tolist() for x in (y, y0.grad)]
print(counts["fxgraph_cache_hit"], counts["fxgraph_cache_miss"], results, sep=";")
"""


@pytest.fixture
def start_process(tmp_path):
    """Start ``SCRIPT`` with torch's caches in a new folder."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.getcwd()}

    def start(factor, math):
        command = [sys.executable, "-c", SCRIPT, str(factor), math]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    return start


def result(process):
    output, _ = process.communicate()
    assert process.returncode == 0
    found, compiled, *results = output.strip().split(";")
    return (int(found), int(compiled)), results


@needs_compiler
@pytest.mark.compiler
def test_processes_share_torchs_caches(start_process):
    """Those that compile the same and different graphs at the same time, and later ones, which find all graphs."""
    choices = [(1.0, "exact"), (1.0, "exact"), (1.0, "fast")]
    first = [result(process) for process in [start_process(*choice) for choice in choices]]
    assert first[0][1] == first[1][1] != first[2][1]
    assert first[2][0] == (0, 2)
    for choice, (_, expected) in list(zip(choices, first, strict=True))[1:]:
        counts, results = result(start_process(*choice))
        assert counts == (2, 0)
        assert results == expected
