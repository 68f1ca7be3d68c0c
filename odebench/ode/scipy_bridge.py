"""The bridge to SciPy: run a whole solve with one of SciPy's solvers."""

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odebench.ode.methods.scipy_methods import SciPyMethod
from odebench.ode.plan import SolvePlan
from odebench.ode.solution import SolveOutcome, Stats, Status

# The largest N for solvers that store an N x N matrix: 2 GiB.
MAX_MATRIX_SIZE = 16_384
SOLVERS_WITH_MIN_STEP = ("LSODA", "vode_adams")


class NonFiniteError(ArithmeticError):
    """The error of an f that is NaN or infinite. Without it, SciPy's solvers would not end, or report another error."""


def solve_span(
    method: SciPyMethod, field: Any, y: Tensor, times: list[float], plan: SolvePlan, stats: Stats
) -> tuple[Tensor, SolveOutcome, float]:
    """Return the states [T, N] at the times, how the solve ended, and the last step size.

    SciPy's norm, controller and first step replace those of the plan, and steps are not observed. ``max_steps`` limits
    the number of accepted steps, since SciPy does not report rejected steps.

    Raises ValueError for options that the solver lacks, and if a gradient would have to pass through the solver.
    """
    _check_options(method, y, plan)
    if not y.numel():
        outcome = SolveOutcome(Status.success, len(times), times[-1], math.nan, math.nan, stats.nfe)
        return y.expand(len(times), 0), outcome, abs(times[-1] - times[0])
    adapter = _FieldAdapter(method, field, y)
    outputs, status, end, step = [y], Status.success, times[0], math.nan
    with warnings.catch_warnings():
        # Failures are reported by the status.
        warnings.filterwarnings("ignore", "(vode|lsoda): ", UserWarning)
        try:
            solver = _make_solver(method, adapter, y, times, plan)
            while len(outputs) < len(times):
                if stats.accepted == plan.max_steps:
                    status = Status.max_steps
                    break
                solver.step()
                # LSODA and VODE continue with steps that do not change t.
                if solver.status == "failed" or solver.t == solver.t_old:
                    status = Status.step_underflow
                    break
                step, end = float(solver.t - solver.t_old), float(solver.t)
                stats.accepted += 1
                stats.step_sizes.append(step)
                stats.warm_step = stats.warm_step or abs(step)
                outputs += _outputs_in_step(solver, adapter, times[len(outputs) :])
        except NonFiniteError:
            status = Status.non_finite
    outcome = SolveOutcome(status, len(outputs), end, step, math.nan, stats.nfe)
    outputs += [torch.full_like(y, math.nan)] * (len(times) - len(outputs))
    return torch.stack(outputs), outcome, abs(step)


def _check_options(method: SciPyMethod, y: Tensor, plan: SolvePlan) -> None:
    if plan.min_step > 0 and method.solver not in SOLVERS_WITH_MIN_STEP:
        raise ValueError(f"method {method.name} has no min_step; use a method that is not SciPy's, such as dopri5")
    n = y.numel() * (2 if y.is_complex() else 1)
    if method.matrix and n > MAX_MATRIX_SIZE:
        raise ValueError(
            f"method {method.name} stores an N x N matrix, {8 * n * n / 2**30:.3g} GiB for this state of "
            f"{n:,}; at most {MAX_MATRIX_SIZE:,} are allowed: use vode_adams or adams"
        )
    if plan.dense or (torch.is_grad_enabled() and y.requires_grad):  # dense: for an interpolated adjoint
        raise ValueError(_no_gradient(method))


def _no_gradient(method: SciPyMethod) -> str:
    return (
        f"method {method.name}: autograd cannot differentiate through SciPy; use gradient='adjoint', or "
        "torch.no_grad() if no gradient is needed"
    )


class _FieldAdapter:
    """Convert f and states between the tensors of a solve and SciPy's arrays.

    y: a state [N], whose dtype and device the tensors have. The arrays are float64 [N], or [2N] for a complex state.
    """

    def __init__(self, method: SciPyMethod, field: Any, y: Tensor) -> None:
        self._method, self._field, self._y = method, field, y

    def __call__(self, t: float, y: np.ndarray) -> np.ndarray:
        """Return dy/dt. Raises NonFiniteError if it is not finite, and ValueError if it requires grad."""
        (time,) = self._field.time_tensors([float(t)])
        rate = self._field(time, self.state(y), True)
        if rate.requires_grad and torch.is_grad_enabled():
            raise ValueError(_no_gradient(self._method))
        array = self.array(rate)
        if not np.isfinite(array).all():
            raise NonFiniteError
        return array

    def array(self, y: Tensor) -> np.ndarray:
        """Convert a tensor to a new array."""
        y = y.detach().resolve_conj()
        real = torch.view_as_real(y).reshape(-1) if y.is_complex() else y
        return real.to("cpu", torch.float64, copy=True).numpy()

    def state(self, y: np.ndarray) -> Tensor:
        """Convert an array to a new tensor."""
        # Copy, since SciPy overwrites its arrays.
        state = torch.tensor(y, dtype=self._y.real.dtype, device="cpu").to(self._y.device, non_blocking=True)
        return torch.view_as_complex(state.view(-1, 2)) if self._y.is_complex() else state

    def tolerance(self, tolerance: float | Tensor) -> float | np.ndarray:
        """Convert a tolerance of the state, which is a number or [N], to a tolerance of the array."""
        if isinstance(tolerance, float):
            return tolerance
        array = tolerance.detach().to("cpu", torch.float64).numpy()
        return np.repeat(array, 2) if self._y.is_complex() else array


def _make_solver(method: SciPyMethod, adapter: _FieldAdapter, y: Tensor, times: list[float], plan: SolvePlan) -> Any:
    """Make SciPy's solver, which starts at the first time."""
    from scipy import integrate

    assert plan.tolerance is not None
    start, end = times[0], times[-1]
    options: dict[str, Any] = {
        "rtol": adapter.tolerance(plan.tolerance.rtol),
        "atol": adapter.tolerance(plan.tolerance.atol),
        "first_step": None if plan.first_step is None else min(plan.first_step, abs(end - start)),
        "max_step": plan.max_step,
    }
    if method.solver in SOLVERS_WITH_MIN_STEP:
        options["min_step"] = plan.min_step
    make = _VodeAdams if method.solver == "vode_adams" else getattr(integrate, method.solver)
    return make(adapter, start, adapter.array(y), end, **options)


def _outputs_in_step(solver: Any, adapter: _FieldAdapter, remaining: list[float]) -> list[Tensor]:
    """Return the states at those of the remaining output times that the last step has reached."""
    direction = math.copysign(1.0, solver.t - solver.t_old)
    reached = [time for time in remaining if (time - solver.t) * direction <= 0]
    interpolate = None if reached in ([], [solver.t]) else solver.dense_output()
    return [
        adapter.state(solver.y if interpolate is None or time == solver.t else interpolate(time)) for time in reached
    ]


class _VodeAdams:
    """VODE's Adams method with functional iteration, with the interface of SciPy's newer solvers.

    It stores 16 states and no matrix, and does not step beyond the last time.

    Brown, Byrne & Hindmarsh 1989, VODE: a variable-coefficient ODE solver.
    """

    def __init__(
        self,
        fun: _FieldAdapter,
        t0: float,
        y0: np.ndarray,
        t_bound: float,
        first_step: float | None,
        max_step: float,
        **options: Any,
    ) -> None:
        from scipy.integrate import ode

        self.t, self.t_old, self.y, self.status = t0, t0, y0, "running"
        self._fun, self._bound = fun, t_bound
        self._raised: BaseException | None = None
        solver = ode(self._call).set_integrator(
            "vode",
            method="adams",
            first_step=math.copysign(first_step or 0.0, t_bound - t0),
            max_step=0.0 if math.isinf(max_step) else max_step,
            **options,
        )
        solver.set_initial_value(y0, t0)
        self._vode = solver._integrator
        self._vode.rwork[0] = t_bound

    def step(self) -> None:
        """Take one step and set ``status``."""
        # Task 5 of VODE: take one step, but not beyond the time in rwork[0].
        y, t = self._run(5, self._bound)
        if not self._vode.success:
            self.status = "failed"
            return
        self.t_old, self.t, self.y = self.t, t, y.copy()
        self.status = "finished" if t == self._bound else "running"

    def dense_output(self) -> Any:
        """Return a function from a time inside the last step to the state, which VODE interpolates."""
        return lambda t: self._run(1, t)[0].copy()

    def _run(self, task: int, t: float) -> tuple[np.ndarray, float]:
        self._vode.call_args[2] = task
        y, t = self._vode.run(self._call, lambda: None, self.y.copy(), self.t, t, (), ())
        if self._raised is not None:
            raise self._raised
        return y, t

    def _call(self, t: float, y: np.ndarray) -> np.ndarray:
        """Evaluate f, and keep its exception for ``_run`` to raise.

        VODE of SciPy 1.17 continues to evaluate f after an error.
        """
        if self._raised is None:
            try:
                return self._fun(t, y)
            except BaseException as error:
                self._raised = error
        return np.zeros_like(y)
