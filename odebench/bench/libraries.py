"""The solver libraries. For each there is an adapter, which turns a request into a function that solves it.

All solve with the same tensors and tolerances. As far as a library has these options, the error norm is the root mean
square over the whole state, step control is integral with safety 0.9 and factors from 0.2 to 10, and the first step is
automatic.
"""

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odebench import ode
from odebench.bench.cases import State, leaves_of, like_state
from odebench.ode.gradients import GRADIENTS
from odebench.ode.methods import METHODS

FORWARD = "forward"
# Family -> modes. The modes of a family compute the same, so that their times can be compared.
MODE_FAMILIES = {
    "forward": (FORWARD,),
    "exact gradient": ("backprop", "checkpoint", "reversible"),
    "continuous adjoint": ("adjoint", "interpolated_adjoint"),
}
MODES = tuple(mode for modes in MODE_FAMILIES.values() for mode in modes)


# Variant of odebench -> its arguments for ``ode.solve``.
COMPILED: dict[str, dict[str, Any]] = {
    "compiled": {"compile": "step"},
    "compiled_solve": {"compile": "solve"},
    "compiled_fast": {"compile": "solve", "compile_math": "fast"},
}


class StepCounts(NamedTuple):
    """The numbers of steps of a forward solve; with per-sample stepping the sums over the rows."""

    accepted: int
    rejected: int


@dataclass(frozen=True)
class SolveRequest:
    """One initial value problem, and how to solve it.

    field: f(t, y). times: [T]. mode: one of ``MODES``. variant: a variant of the library; "" is the default.
    """

    field: nn.Module
    state: State
    times: Tensor
    method: str
    mode: str
    variant: str
    rtol: float
    atol: float


# A function that takes the state at the first time and returns the states at all times, each tensor [T, *its shape],
# and the numbers of steps if the library reports them. It records the graph if autograd is on.
SolveFunction = Callable[[State], tuple[State, StepCounts | None]]


@dataclass(frozen=True)
class Library:
    """One solver library.

    modes: the modes that the library supports.
    methods: our name of a method -> the library's name.
    make_solve: makes the SolveFunction for a request; None for a library that runs in a separate process.
    variants: further ways to run the library, as pairs (variant, mode); the mode "" means all modes.
    torch_memory: whether peak memory and operations can be measured in torch.
    """

    modes: tuple[str, ...]
    methods: Mapping[str, str]
    make_solve: Callable[[SolveRequest], SolveFunction] | None
    variants: tuple[tuple[str, str], ...] = ()
    torch_memory: bool = True


def solve_with_odebench(request: SolveRequest) -> SolveFunction:
    """Solve with ``odebench.ode.solve``; its variants are those of ``COMPILED``, and "per_sample"."""

    def solve(y0: State) -> tuple[State, StepCounts]:
        solution = ode.solve(
            request.field,
            y0,
            request.times,
            method=request.method,
            rtol=request.rtol,
            atol=request.atol,
            controller="integral",
            stepping="per_sample" if request.variant == "per_sample" else "shared",
            gradient="backprop" if request.mode == FORWARD else request.mode,
            **COMPILED.get(request.variant, {}),
        )
        return solution.y, StepCounts(solution.stats.accepted, solution.stats.rejected)

    return solve


def solve_with_torchdiffeq(request: SolveRequest) -> SolveFunction:
    """Solve with ``odeint`` or ``odeint_adjoint``; variant "seminorm" omits the parameters from the adjoint's error."""
    import torchdiffeq

    num_elements = sum(leaf.numel() for leaf in leaves_of(request.state))

    def joint_norm(leaves: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([leaf.square().sum() for leaf in leaves]).sum().div(num_elements).sqrt()

    options: dict[str, Any] = {"method": request.method, "rtol": request.rtol, "atol": request.atol}
    if isinstance(request.state, tuple):
        options["options"] = {"norm": joint_norm}  # the default is the largest norm of one tensor
    if request.mode != "adjoint":
        return lambda y0: (torchdiffeq.odeint(request.field, y0, request.times, **options), None)
    if request.variant == "seminorm":
        options["adjoint_options"] = {"norm": "seminorm"}
    return lambda y0: (torchdiffeq.odeint_adjoint(request.field, y0, request.times, **options), None)


class FlatField(nn.Module):
    """A field with a flat state: f(t, y [N]); with ``rows`` it is f(t [1], y [1, N]), which torchode requires."""

    def __init__(self, request: SolveRequest, rows: bool = False) -> None:
        super().__init__()
        self.field = request.field
        self._state = request.state
        self._shapes = [leaf.shape for leaf in leaves_of(request.state)]
        self._sizes = [leaf.numel() for leaf in leaves_of(request.state)]
        self._rows = rows

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return dy/dt, with the shape of y."""
        return self.flatten(self.field(t.reshape(()), self.unflatten(y.reshape(-1))))

    def flatten(self, state: State) -> Tensor:
        """Flatten a state to [N], or to [1, N] with ``rows``."""
        flat = torch.cat([leaf.reshape(-1) for leaf in leaves_of(state)])
        return flat.unsqueeze(0) if self._rows else flat

    def unflatten(self, y: Tensor) -> State:
        """Convert y [*batch, N] back to a state."""
        parts = y.split(self._sizes, dim=-1)
        leaves = [part.reshape(*y.shape[:-1], *shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return like_state(self._state, leaves)


def solve_with_torchode(request: SolveRequest) -> SolveFunction:
    """Solve with torchode's ``AutoDiffAdjoint`` or ``JointBacksolveAdjoint``.

    torchode has only per-sample steps. By default the whole batch is one row, so that all libraries use the same norm;
    variant "per_sample" has one row per sample.
    """
    import torchode

    per_sample = request.variant == "per_sample"
    flat = FlatField(request, rows=True)
    term = torchode.ODETerm(request.field if per_sample else flat, with_stats=False)
    method = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[request.method](term=term)
    controller = torchode.IntegralController(atol=request.atol, rtol=request.rtol, term=term)
    if request.mode == "adjoint":
        loop = torchode.JointBacksolveAdjoint(term, method, controller)
    else:
        loop = torchode.AutoDiffAdjoint(method, controller, backprop_through_step_size_control=False)

    def solve(y0: State) -> tuple[State, StepCounts]:
        y: Any = y0 if per_sample else flat.flatten(y0)
        solution = loop.solve(torchode.InitialValueProblem(y0=y, t_eval=request.times.expand(len(y), -1)))
        attempts, accepted = (int(solution.stats[name].sum()) for name in ("n_steps", "n_accepted"))
        states = solution.ys.transpose(0, 1) if per_sample else flat.unflatten(solution.ys[0])
        return states, StepCounts(accepted, attempts - accepted)

    return solve


def solve_with_torchdyn(request: SolveRequest) -> SolveFunction:
    """Solve with ``torchdyn.numerics.odeint``, or with ``ODEProblem`` for the adjoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchdyn.core import ODEProblem
        from torchdyn.numerics import odeint

    flat = FlatField(request)
    # Without interpolation torchdyn would shorten a step for every output.
    options = {"solver": request.method, "rtol": request.rtol, "atol": request.atol}
    if request.method == "dopri5":
        options["interpolator"] = "4th"
    if request.mode == "adjoint":
        adjoint_options = {"rtol_adjoint": request.rtol, "atol_adjoint": request.atol}
        problem = ODEProblem(flat, sensitivity="adjoint", **adjoint_options, **options)
        return lambda y0: (flat.unflatten(problem.odeint(flat.flatten(y0), request.times)[1]), None)
    return lambda y0: (flat.unflatten(odeint(flat, flat.flatten(y0), request.times, **options)[1]), None)


def solve_with_scipy(request: SolveRequest) -> SolveFunction:
    """Solve with ``scipy.integrate.solve_ivp``, without gradient. It uses float64; only f keeps its own dtype."""
    from scipy.integrate import solve_ivp

    flat = FlatField(request)
    dtype = request.times.dtype

    def rate(t: float, y: Any) -> Any:
        return flat(torch.tensor(t, dtype=dtype), torch.from_numpy(y).to(dtype)).double().numpy()

    def solve(y0: State) -> tuple[State, None]:
        times = request.times.double().tolist()
        solution = solve_ivp(
            rate,
            (times[0], times[-1]),
            flat.flatten(y0).double().numpy(),
            method=LIBRARIES["scipy"].methods[request.method],
            t_eval=times,
            rtol=request.rtol,
            atol=request.atol,
        )
        if not solution.success:
            raise RuntimeError(solution.message)
        return flat.unflatten(torch.from_numpy(solution.y.T.copy()).to(dtype)), None

    return solve


LIBRARIES: dict[str, Library] = {
    "odebench": Library(
        tuple(mode for mode in MODES if mode == FORWARD or mode in GRADIENTS),
        {name: name for name, method in METHODS.items() if method.adaptive},
        solve_with_odebench,
    ),
    "torchdiffeq": Library(
        (FORWARD, "backprop", "adjoint"),
        {name: name for name in ("dopri5", "bosh3", "adaptive_heun", "fehlberg2", "dopri8", "tsit5")},
        solve_with_torchdiffeq,
        variants=(("seminorm", "adjoint"),),
    ),
    "torchode": Library((FORWARD, "backprop", "adjoint"), {"dopri5": "dopri5", "tsit5": "tsit5"}, solve_with_torchode),
    "torchdyn": Library((FORWARD, "backprop", "adjoint"), {"dopri5": "dopri5", "tsit5": "tsit5"}, solve_with_torchdyn),
    "scipy": Library(
        (FORWARD,),
        {"dopri5": "RK45", "bosh3": "RK23", "dop853": "DOP853", "radau": "Radau", "bdf": "BDF", "lsoda": "LSODA"},
        solve_with_scipy,
        torch_memory=False,
    ),
    "diffrax": Library(
        (FORWARD, "checkpoint", "adjoint"),
        {"dopri5": "Dopri5", "tsit5": "Tsit5", "bosh3": "Bosh3", "dopri8": "Dopri8", "kvaerno5": "Kvaerno5"},
        None,
        torch_memory=False,
    ),
}
OTHER_LIBRARIES = tuple(name for name in LIBRARIES if name != "odebench")


def installed_version(name: str) -> str | None:
    """The version of a library, whose package has the same name; None if it is not installed."""
    try:
        return version(name) if importlib.util.find_spec(name) else None
    except PackageNotFoundError:
        return None
