"""The problems that are solved, as data: a vector field, a state, times, a tolerance.

A state is a tensor or a tuple of tensors, the first dimension being the batch. All of it is made from one seed, so
that every library, every mode and every run meets the same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odebench.bench import fields

State = Tensor | tuple[Tensor, ...]

SEED = 0
EXPLICIT = ("dopri5",)
STIFF = ("kvaerno5", "rodas4", "radau", "bdf", "lsoda")


@dataclass(frozen=True)
class BenchmarkCase:
    """One problem.

    name, about: what the user types, and a line that says what it is.
    field, state: make the vector field f(t, y) and the state at the first time.
    times: where the states are wanted.
    tol: rtol and atol.
    published: from ``field``, the same function with the same parameters as its authors wrote it, where ours is
        written otherwise; the peers solve that one.
    methods: solved by these where the user names none; a library takes part with those it has.
    per_sample: each row may have its own step sizes.
    reference_tol, reference: tolerance of the float64 reference, and how it is had: "engine", "engine_adjoint" (flat
        in memory), or "sensitivities" (SciPy's Radau on the variational equations, for small stiff systems).
    minutes_for: libraries that need minutes for it, so that they take part only when they are named.
    """

    name: str
    about: str
    field: Callable[[], nn.Module]
    state: Callable[[], State]
    times: tuple[float, ...]
    tol: float
    published: Callable[[Any], nn.Module] | None = None
    methods: tuple[str, ...] = EXPLICIT
    per_sample: bool = False
    dtype: torch.dtype = torch.float32
    reference_tol: float = 1e-10
    reference: str = "engine"
    minutes_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseProblem:
    """A work with its tensors: the same objects for everybody.

    published: what the peers solve; ``field`` itself where it is written as published.
    times: [T], in the state's dtype.
    """

    work: BenchmarkCase
    field: nn.Module
    published: nn.Module
    state: State
    times: Tensor

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of the field, in the order in which gradients are compared."""
        return list(self.field.parameters())


def build(work: BenchmarkCase) -> CaseProblem:
    """The work's tensors, the same at every call; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        field = work.field().to(work.dtype)
        state = work.state()
    leaves = [leaf.to(work.dtype) for leaf in leaves_of(state)]
    published = work.published(field) if work.published else field
    times = torch.tensor(work.times, dtype=work.dtype)
    return CaseProblem(work, field, published, like(state, leaves), times)


def leaves_of(state: State) -> list[Tensor]:
    """The tensors of a state."""
    return list(state) if isinstance(state, tuple) else [state]


def like(state: State, leaves: list[Tensor]) -> State:
    """The leaves in the structure of the state."""
    return tuple(leaves) if isinstance(state, tuple) else leaves[0]


def loss(states: State) -> Tensor:
    """What the gradient is taken of: the mean square of each tensor of the states [T, ...], first time left out."""
    return torch.stack([leaf[1:].square().mean() for leaf in leaves_of(states)]).sum()


def _evenly(end: float, num: int) -> tuple[float, ...]:
    return tuple(end * i / (num - 1) for i in range(num))


def _oscillators(num: int) -> Tensor:
    """Rows (x, v, mu), mu from 0.1 to 30."""
    start = torch.tensor([2.0, 0.0]).expand(num, 2)
    return torch.cat([start, torch.logspace(-1, 1.477, num).unsqueeze(1)], dim=1)


_ALL = (
    BenchmarkCase(
        "tiny",
        "spiral: y^3 through an MLP 2-50-2 (tanh), batch 20, 10 outputs in [0, 1] (torchdiffeq's ode_demo)",
        field=fields.Spiral,
        state=lambda: 4 * torch.rand(20, 2) - 2,
        times=_evenly(1.0, 10),
        tol=1e-5,
    ),
    BenchmarkCase(
        "mlp",
        "MLP 4-64-64-4 (tanh), batch 128, 50 outputs in [0, 5]",
        field=lambda: fields.mlp(nn.Tanh()),
        state=lambda: torch.randn(128, 4),
        times=_evenly(5.0, 50),
        tol=1e-5,
    ),
    BenchmarkCase(
        "mlp_silu",
        "MLP 4-64-64-4 (SiLU), batch 128, 50 outputs in [0, 5]",
        field=lambda: fields.mlp(nn.SiLU()),
        state=lambda: torch.randn(128, 4),
        times=_evenly(5.0, 50),
        tol=1e-5,
    ),
    BenchmarkCase(
        "conv",
        "field of the MNIST ODE-Net, 64 x 6 x 6, batch 128, t in [0, 1]; peers solve it as published",
        field=lambda: fields.ConvField(64, 32),
        state=lambda: torch.randn(128, 64, 6, 6),
        times=(0.0, 1.0),
        tol=1e-3,
        published=fields.PublishedConvField,
        # Kinks make tighter ones dear; at this one the reference's own gradient is good to 1 %.
        reference_tol=1e-5,
        reference="engine_adjoint",
        minutes_for=("diffrax",),
    ),
    BenchmarkCase(
        "cnf",
        "continuous normalizing flow, 2-D, hypernetwork, exact trace, batch 512, t in [0, 10] (torchdiffeq's cnf)",
        field=fields.HypernetworkFlow,
        state=lambda: (torch.randn(512, 2), torch.zeros(512, 1)),
        times=(0.0, 10.0),
        tol=1e-5,
        reference_tol=1e-9,
    ),
    BenchmarkCase(
        "robertson",
        "Robertson's reaction, stiff, (y1, 1e4 y2, y3), 9 outputs to t = 1e4, float64",
        field=fields.Robertson,
        state=lambda: torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
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
        state=lambda: torch.tensor([2.0, 0.0], dtype=torch.float64),
        times=_evenly(1000.0, 11),
        tol=1e-6,
        methods=STIFF,
        dtype=torch.float64,
        reference="sensitivities",
    ),
    BenchmarkCase(
        "mixed",
        "64 van der Pol oscillators, mu from 0.1 to 30, 20 outputs in [0, 10], float64; rows with steps of their own",
        field=fields.Oscillators,
        state=lambda: _oscillators(64),
        times=_evenly(10.0, 20),
        tol=1e-5,
        per_sample=True,
        dtype=torch.float64,
    ),
)
WORKS = {work.name: work for work in _ALL}
GROUPS = {"stiff": ("robertson", "vdp"), "all": tuple(WORKS)}
DEFAULT = ("tiny", "mlp", "conv", "cnf")
