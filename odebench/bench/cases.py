"""The benchmark cases as data: a vector field, an initial state, output times, a tolerance.

A state is a tensor or a tuple of tensors; the first dimension is the batch. A fixed seed makes the tensors the same for
every library, mode and run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from odebench.bench import fields
from odebench.errors import UsageError
from odebench.models.series.fields import AutonomousField

State = Tensor | tuple[Tensor, ...]

SEED = 0
EXPLICIT = ("dopri5",)
STIFF = ("kvaerno5", "rodas4", "radau", "bdf", "lsoda")


@dataclass(frozen=True)
class BenchmarkCase:
    """An initial value problem on which libraries are compared.

    name, description: the name on the command line, and one line for the table.
    field: a function that makes the vector field f(t, y).
    state: a function that makes the state at the first time, with ``batch`` rows.
    batch: the number of rows; 0 if the state has no batch dimension.
    times: the output times.
    tol: the value of rtol and atol.
    published: a function that makes the field's published implementation from ``field``, with the same parameters. The
        other libraries solve that one. None if the published implementation is the same as ours.
    methods: the default methods; each library runs those that it has.
    per_sample: whether each row (sample of the batch) may have its own step sizes.
    reference_tol: the tolerance of the float64 reference solution.
    reference: how the gradient of the reference is computed: "checkpoint", "adjoint" (constant memory), or
        "sensitivities" (SciPy's Radau on the variational equations, for small stiff systems).
    slow_libraries: libraries that need minutes for this case; they run only if the user names them.
    """

    name: str
    description: str
    field: Callable[[], nn.Module]
    state: Callable[[int], State]
    times: tuple[float, ...]
    tol: float
    batch: int
    published: Callable[[Any], nn.Module] | None = None
    methods: tuple[str, ...] = EXPLICIT
    per_sample: bool = False
    dtype: torch.dtype = torch.float32
    reference_tol: float = 1e-10
    reference: str = "checkpoint"
    slow_libraries: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseProblem:
    """A case with its tensors; all libraries solve the same objects.

    published: the field that the other libraries solve; ``field`` itself if there is no published implementation.
    times: [T], in the state's dtype.
    """

    case: BenchmarkCase
    field: nn.Module
    published: nn.Module
    state: State
    times: Tensor

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of the field, in the order in which gradients are compared."""
        return list(self.field.parameters())


def build_problem(case: BenchmarkCase) -> CaseProblem:
    """Make the case's tensors, the same at every call; the caller's random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        field = case.field().to(case.dtype)
        state = case.state(case.batch)
    leaves = [leaf.to(case.dtype) for leaf in leaves_of(state)]
    published = case.published(field) if case.published else field
    times = torch.tensor(case.times, dtype=case.dtype)
    return CaseProblem(case, field, published, like_state(state, leaves), times)


def with_batch(case: BenchmarkCase, batch: int) -> BenchmarkCase:
    """The case with another number of rows. Raises UsageError if its state has no batch dimension."""
    if not case.batch:
        raise UsageError(f"--batch: the state of {case.name} has no batch dimension; leave one of them out")
    return replace(case, batch=batch)


def leaves_of(state: State) -> list[Tensor]:
    """The tensors of a state."""
    return list(state) if isinstance(state, tuple) else [state]


def like_state(state: State, leaves: list[Tensor]) -> State:
    """Arrange tensors in the structure of the state."""
    return tuple(leaves) if isinstance(state, tuple) else leaves[0]


def loss(states: State) -> Tensor:
    """The loss whose gradient is computed: the sum of the mean squares of the state's tensors after the first time."""
    return torch.stack([leaf[1:].square().mean() for leaf in leaves_of(states)]).sum()


def _evenly_spaced(end: float, num: int) -> tuple[float, ...]:
    return tuple(end * i / (num - 1) for i in range(num))


def _oscillators(num: int) -> Tensor:
    """Initial states (x, v, mu) of the oscillators, one row each, with mu from 0.1 to 30."""
    start = torch.tensor([2.0, 0.0]).expand(num, 2)
    return torch.cat([start, torch.logspace(-1, 1.477, num).unsqueeze(1)], dim=1)


_ALL = (
    BenchmarkCase(
        "tiny",
        "spiral: y^3 through an MLP 2-50-2 (tanh), batch 20, 10 outputs in [0, 1] (torchdiffeq's ode_demo)",
        field=fields.Spiral,
        state=lambda batch: 4 * torch.rand(batch, 2) - 2,
        batch=20,
        times=_evenly_spaced(1.0, 10),
        tol=1e-5,
    ),
    BenchmarkCase(
        "mlp",
        "MLP 4-64-64-4 (tanh), batch 128, 50 outputs in [0, 5]",
        field=lambda: AutonomousField(4, units=64, layers=2, activation="tanh"),
        state=lambda batch: torch.randn(batch, 4),
        batch=128,
        times=_evenly_spaced(5.0, 50),
        tol=1e-5,
    ),
    BenchmarkCase(
        "mlp_silu",
        "MLP 4-64-64-4 (SiLU), batch 128, 50 outputs in [0, 5]",
        field=lambda: AutonomousField(4, units=64, layers=2, activation="silu"),
        state=lambda batch: torch.randn(batch, 4),
        batch=128,
        times=_evenly_spaced(5.0, 50),
        tol=1e-5,
    ),
    BenchmarkCase(
        "conv",
        "field of the MNIST ODE-Net, 64 x 6 x 6, batch 128, t in [0, 1]; other libraries solve the published code",
        field=lambda: fields.ConvField(64, 32),
        state=lambda batch: torch.randn(batch, 64, 6, 6),
        batch=128,
        times=(0.0, 1.0),
        tol=1e-3,
        published=fields.PublishedConvField,
        # The kinks of relu make smaller tolerances expensive; at this one the reference gradient has an error of 1 %.
        reference_tol=1e-5,
        reference="adjoint",
        slow_libraries=("diffrax",),
    ),
    BenchmarkCase(
        "cnf",
        "continuous normalizing flow, 2-D, hypernetwork, exact trace, batch 512, t in [0, 10] (torchdiffeq's cnf)",
        field=fields.HypernetworkFlow,
        state=lambda batch: (torch.randn(batch, 2), torch.zeros(batch, 1)),
        batch=512,
        times=(0.0, 10.0),
        tol=1e-5,
        reference_tol=1e-9,
    ),
    BenchmarkCase(
        "robertson",
        "Robertson's reaction, stiff, (y1, 1e4 y2, y3), 9 outputs to t = 1e4, float64",
        field=fields.Robertson,
        state=lambda _: torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
        batch=0,
        times=(0.0, *(10.0**e for e in (-2, -1, 0, 1, 2, 3, 3.5, 4))),
        tol=1e-6,
        methods=STIFF,
        dtype=torch.float64,
        reference="sensitivities",
    ),
    BenchmarkCase(
        "vdp",
        "van der Pol's oscillator, mu = 1000, stiff, 11 outputs in [0, 1000], float64",
        field=lambda: fields.VanDerPol(1000.0),
        state=lambda _: torch.tensor([2.0, 0.0], dtype=torch.float64),
        batch=0,
        times=_evenly_spaced(1000.0, 11),
        tol=1e-6,
        methods=STIFF,
        dtype=torch.float64,
        reference="sensitivities",
    ),
    BenchmarkCase(
        "mixed",
        "64 van der Pol oscillators, mu from 0.1 to 30, 20 outputs in [0, 10], float64; also with per-sample steps",
        field=fields.Oscillators,
        state=_oscillators,
        batch=64,
        times=_evenly_spaced(10.0, 20),
        tol=1e-5,
        per_sample=True,
        dtype=torch.float64,
    ),
)
CASES = {case.name: case for case in _ALL}
CASE_GROUPS = {"stiff": ("robertson", "vdp"), "all": tuple(CASES)}
DEFAULT_CASES = ("tiny", "mlp", "conv", "cnf")
