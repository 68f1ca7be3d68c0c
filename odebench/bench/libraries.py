"""The libraries, one adapter each: from a job to a function that solves it once.

All solve with the same tensors, tolerances, error norm (root mean square over the whole state), integral control with
safety 0.9 and factors from 0.2 to 10, and a searched first step, as far as a library lets one choose.
"""

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from odebench import ode
from odebench.bench.cases import State, leaves_of, like
from odebench.ode.gradients import GRADIENTS
from odebench.ode.methods import METHODS

FORWARD = "forward"
# Modes whose times are compared with one another: what they compute is the same.
FAMILIES = {
    "forward": (FORWARD,),
    "exact gradient": ("backprop", "checkpoint", "reversible"),
    "continuous adjoint": ("adjoint", "interpolated_adjoint"),
}
MODES = tuple(mode for modes in FAMILIES.values() for mode in modes)


@dataclass(frozen=True)
class StepCounts:
    """Steps of a forward solve; rows that step alone are added up."""

    accepted: int
    rejected: int


@dataclass(frozen=True)
class SolveRequest:
    """What one contestant is to do.

    field: f(t, y), bare or counted. times: [T]. variant: a way of its own to do it, "" the plain one.
    """

    field: nn.Module
    state: State
    times: Tensor
    method: str
    mode: str
    variant: str
    rtol: float
    atol: float


SolveFunction = Callable[[State], tuple[State, StepCounts | None]]
"""From the state at the first time to the states at all of them, each tensor [T, *its shape], under autograd where it
is on, and the steps where the library tells."""


@dataclass(frozen=True)
class Library:
    """One solver library.

    package: what is installed and imported. adapt: from a job to its SolveFunction; None for a library that runs in a
        process of its own.
    modes, methods: our names and its own, of what it has.
    variants: (variant, mode or "" for all of them): further ways to run.
    """

    package: str
    modes: tuple[str, ...]
    methods: Mapping[str, str]
    adapt: Callable[[SolveRequest], SolveFunction] | None
    variants: tuple[tuple[str, str], ...] = ()
    torch_memory: bool = True


def solve_with_odebench(job: SolveRequest) -> SolveFunction:
    """``odebench.ode.solve``; variants "compiled" and "per_sample"."""

    def solve(y0: State) -> tuple[State, StepCounts]:
        solution = ode.solve(
            job.field,
            y0,
            job.times,
            method=job.method,
            rtol=job.rtol,
            atol=job.atol,
            controller="integral",
            stepping="per_sample" if job.variant == "per_sample" else "shared",
            gradient="backprop" if job.mode == FORWARD else job.mode,
            compile=job.variant == "compiled",
        )
        return solution.y, StepCounts(solution.stats.accepted, solution.stats.rejected)

    return solve


def solve_with_torchdiffeq(job: SolveRequest) -> SolveFunction:
    """``odeint`` and ``odeint_adjoint``; variant "seminorm" leaves the parameters out of the adjoint's error."""
    import torchdiffeq

    num_elements = sum(leaf.numel() for leaf in leaves_of(job.state))

    def joint_norm(leaves: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([leaf.square().sum() for leaf in leaves]).sum().div(num_elements).sqrt()

    options: dict[str, Any] = {"method": job.method, "rtol": job.rtol, "atol": job.atol}
    if isinstance(job.state, tuple):
        options["options"] = {"norm": joint_norm}  # by default the largest of the tensors' own norms
    if job.mode != "adjoint":
        return lambda y0: (torchdiffeq.odeint(job.field, y0, job.times, **options), None)
    if job.variant == "seminorm":
        options["adjoint_options"] = {"norm": "seminorm"}
    return lambda y0: (torchdiffeq.odeint_adjoint(job.field, y0, job.times, **options), None)


class FlatField(nn.Module):
    """A field on one flat state: f(t, y [N]), or with ``rows`` f(t [1], y [1, N]) as torchode wants it."""

    def __init__(self, job: SolveRequest, rows: bool = False) -> None:
        super().__init__()
        self.field = job.field
        self._state = job.state
        self._shapes = [leaf.shape for leaf in leaves_of(job.state)]
        self._sizes = [leaf.numel() for leaf in leaves_of(job.state)]
        self._rows = rows

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt, of y's shape."""
        rate = self.field(t.reshape(()), self.unflatten(y.reshape(-1)))
        flat = torch.cat([leaf.reshape(-1) for leaf in leaves_of(rate)])
        return flat.unsqueeze(0) if self._rows else flat

    def flatten(self, state: State) -> Tensor:
        """[N], or [1, N] with rows."""
        flat = torch.cat([leaf.reshape(-1) for leaf in leaves_of(state)])
        return flat.unsqueeze(0) if self._rows else flat

    def unflatten(self, y: Tensor) -> State:
        """The state from y [*batch, N]."""
        parts = y.split(self._sizes, dim=-1)
        leaves = [part.reshape(*y.shape[:-1], *shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return like(self._state, leaves)


def solve_with_torchode(job: SolveRequest) -> SolveFunction:
    """``AutoDiffAdjoint`` and ``JointBacksolveAdjoint``. It knows rows with steps of their own only: the whole batch is
    one row, so that all have one norm; variant "per_sample" is its usual way."""
    import torchode

    alone = job.variant == "per_sample"
    flat = FlatField(job, rows=True)
    term = torchode.ODETerm(job.field if alone else flat, with_stats=False)
    method = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[job.method](term=term)
    controller = torchode.IntegralController(atol=job.atol, rtol=job.rtol, term=term)
    if job.mode == "adjoint":
        loop = torchode.JointBacksolveAdjoint(term, method, controller)
    else:
        loop = torchode.AutoDiffAdjoint(method, controller, backprop_through_step_size_control=False)

    def solve(y0: State) -> tuple[State, StepCounts]:
        y: Any = y0 if alone else flat.flatten(y0)
        solution = loop.solve(torchode.InitialValueProblem(y0=y, t_eval=job.times.expand(len(y), -1)))
        attempts, accepted = (int(solution.stats[name].sum()) for name in ("n_steps", "n_accepted"))
        states = solution.ys.transpose(0, 1) if alone else flat.unflatten(solution.ys[0])
        return states, StepCounts(accepted, attempts - accepted)

    return solve


def solve_with_torchdyn(job: SolveRequest) -> SolveFunction:
    """``torchdyn.numerics.odeint``, and ``ODEProblem`` for the adjoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchdyn.core import ODEProblem
        from torchdyn.numerics import odeint

    flat = FlatField(job)
    # Without interpolation it would shorten a step for every output.
    options = {"solver": job.method, "rtol": job.rtol, "atol": job.atol}
    if job.method == "dopri5":
        options["interpolator"] = "4th"
    if job.mode == "adjoint":
        problem = ODEProblem(flat, sensitivity="adjoint", rtol_adjoint=job.rtol, atol_adjoint=job.atol, **options)
        return lambda y0: (flat.unflatten(problem.odeint(flat.flatten(y0), job.times)[1]), None)
    return lambda y0: (flat.unflatten(odeint(flat, flat.flatten(y0), job.times, **options)[1]), None)


def solve_with_scipy(job: SolveRequest) -> SolveFunction:
    """``scipy.integrate.solve_ivp``: no gradient, and all but f in float64."""
    from scipy.integrate import solve_ivp

    flat = FlatField(job)
    dtype = job.times.dtype

    def rate(t: float, y: Any) -> Any:
        return flat(torch.tensor(t, dtype=dtype), torch.from_numpy(y).to(dtype)).double().numpy()

    def solve(y0: State) -> tuple[State, None]:
        times = job.times.double().tolist()
        solution = solve_ivp(
            rate,
            (times[0], times[-1]),
            flat.flatten(y0).double().numpy(),
            method=LIBRARIES["scipy"].methods[job.method],
            t_eval=times,
            rtol=job.rtol,
            atol=job.atol,
        )
        if not solution.success:
            raise RuntimeError(solution.message)
        return flat.unflatten(torch.from_numpy(solution.y.T.copy()).to(dtype)), None

    return solve


LIBRARIES: dict[str, Library] = {
    "odebench": Library(
        "odebench",
        tuple(mode for mode in MODES if mode == FORWARD or mode in GRADIENTS),
        {name: name for name, method in METHODS.items() if method.adaptive},
        solve_with_odebench,
    ),
    "torchdiffeq": Library(
        "torchdiffeq",
        (FORWARD, "backprop", "adjoint"),
        {name: name for name in ("dopri5", "bosh3", "adaptive_heun", "fehlberg2", "dopri8", "tsit5")},
        solve_with_torchdiffeq,
        variants=(("seminorm", "adjoint"),),
    ),
    "torchode": Library(
        "torchode",
        (FORWARD, "backprop", "adjoint"),
        {"dopri5": "dopri5", "tsit5": "tsit5"},
        solve_with_torchode,
    ),
    "torchdyn": Library(
        "torchdyn",
        (FORWARD, "backprop", "adjoint"),
        {"dopri5": "dopri5", "tsit5": "tsit5"},
        solve_with_torchdyn,
    ),
    "scipy": Library(
        "scipy",
        (FORWARD,),
        {"dopri5": "RK45", "bosh3": "RK23", "dop853": "DOP853", "radau": "Radau", "bdf": "BDF", "lsoda": "LSODA"},
        solve_with_scipy,
        torch_memory=False,
    ),
    "diffrax": Library(
        "diffrax",
        (FORWARD, "checkpoint", "adjoint"),
        {"dopri5": "Dopri5", "tsit5": "Tsit5", "bosh3": "Bosh3", "dopri8": "Dopri8", "kvaerno5": "Kvaerno5"},
        None,
        torch_memory=False,
    ),
}
PEERS = tuple(name for name in LIBRARIES if name != "odebench")


def installed_version(name: str) -> str | None:
    """The version of a library, None where it is not installed."""
    package = LIBRARIES[name].package
    try:
        return version(package) if importlib.util.find_spec(package) else None
    except PackageNotFoundError:
        return None
