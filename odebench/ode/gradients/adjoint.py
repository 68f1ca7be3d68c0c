"""The continuous adjoint method.

Chen, Rubanova, Bettencourt & Duvenaud 2018, Neural Ordinary Differential Equations, section 2: with
a = dL/dy, da/dt = -a^T df/dy and dL/dtheta = integral of a^T df/dtheta, solved backward in time. With a Runge-Kutta
method the parameter gradient is not part of the state, but a quadrature over the accepted steps: it does not need
error control (Kidger, Chen & Lyons 2021, "Hey, that's not an ODE").
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from odebench.ode.arguments import as_number, as_positive_integer
from odebench.ode.control import LargestRms, Norm, Tolerance
from odebench.ode.dense import DenseOutput
from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.gradients.adjoint_field import Quadrature, packed_size
from odebench.ode.gradients.backward_solve import AdjointSolve, BackwardSolve, quadrature_for
from odebench.ode.gradients.captured_tensors import first_evaluation, run_with_backward
from odebench.ode.integrate import IntegrationResult
from odebench.ode.methods import Method
from odebench.ode.methods.steppers import find_method
from odebench.ode.plan import SolvePlan, even_grid
from odebench.ode.problem import InitialValueProblem

# The relative error of the adjoint may be this many times as large as that of the state: an error of the adjoint enters
# the gradient once, while an error of the state changes every later evaluation.
ADJOINT_ERROR_FACTOR = 10.0


@dataclass(frozen=True)
class Adjoint:
    """The continuous adjoint, with memory that does not grow with the number of steps.

    The relative error of the gradient falls with the tolerance, but may be many times as large. There are no second
    derivatives.

    rtol, atol: the tolerances of the backward solve; None takes those of the forward solve. They are unused if either
        solve has fixed steps.
    method: the method of the backward solve; None takes that of the forward solve.
    steps: the number of fixed steps of the backward solve over the whole span, with at least one between two times;
        None takes the steps or the tolerance of the forward solve. With the method and tolerances of the forward solve,
        the backward solve takes no larger steps than the forward solve did.
    norm: "semi" excludes the parameter gradient from the error of the backward solve, "full" includes it.
    error: "relative" measures the error of the adjoint relative to its norm at the later end of each interval between
        two times, and allows ten times the tolerance. "absolute" measures it as torchdiffeq does (with norm "full"):
        fewer evaluations, but a small gradient is less exact.
    """

    rtol: float | None = None
    atol: float | None = None
    method: str | Method | None = None
    steps: int | None = None
    norm: Literal["semi", "full"] = "semi"
    error: Literal["relative", "absolute"] = "relative"

    name = "adjoint"
    interpolates = False

    def __post_init__(self) -> None:
        for option in ("rtol", "atol"):
            value = getattr(self, option)
            if value is not None and not as_number(option, value) >= 0:
                raise ValueError(f"gradient={self.name!r}: {option} must not be negative, got {value}")
        if self.rtol == self.atol == 0:
            raise ValueError(f"gradient={self.name!r}: rtol and atol must not both be zero")
        if self.steps is not None:
            as_positive_integer("steps", self.steps)
        for option, (one, two) in {"norm": ("semi", "full"), "error": ("relative", "absolute")}.items():
            if (value := getattr(self, option)) not in (one, two):
                raise ValueError(f"gradient={self.name!r}: {option} must be {one!r} or {two!r}, got {value!r}")

    def solve_with_gradient(self, solve: ForwardSolve) -> IntegrationResult:
        """Solve; return the states at the problem's times, and how the solve ended.

        Raises ValueError if f uses a tensor whose gradient this mode would lose.
        """
        if not torch.is_grad_enabled():
            return solve.result()
        first = first_evaluation(solve.problem, self.name)
        backward_solve = functools.partial(self._backward_solve, solve.problem, solve.plan, first.parameters)
        if self.interpolates:
            solve = dataclasses.replace(solve, plan=dataclasses.replace(solve.plan, dense=True))
        return run_with_backward(AdjointSolve, solve, first, backward_solve)

    def _backward_solve(
        self, problem: InitialValueProblem, plan: SolvePlan, parameters: Sequence[Tensor], result: IntegrationResult
    ) -> "BackwardSolve":
        step_sizes = list(map(abs, problem.stats.step_sizes))
        backward_plan = self._plan(plan, problem.times[-1] - problem.times[0], max(step_sizes, default=math.inf))
        quadrature = quadrature_for(self.norm, backward_plan.method)
        targets = [x for x in (*parameters, *problem.args) if x.requires_grad]
        return BackwardSolve(
            dataclasses.replace(
                backward_plan,
                # It starts at the last time, with the last step size of the forward solve.
                first_step=step_sizes[-1] if step_sizes else result.next_step,
                tolerance=self._tolerance(backward_plan.tolerance, quadrature, targets, problem.y0),
                norm=self._norm(plan, targets, problem.y0),
            ),
            quadrature,
            result.times[: result.outcome.reached],
            DenseOutput(result.interpolants, lambda y: y) if self.interpolates and result.interpolants else None,
            relative=self.error == "relative",
            compile=plan.compile is True and self.norm == "semi" and not self.interpolates and not plan.one_sided,
            mode=self.name,
        )

    def _plan(self, plan: SolvePlan, span: float, largest: float) -> SolvePlan:
        """Make the plan of the backward solve.

        plan: the plan of the forward solve. span: the time between its first and last time. largest: its largest step.
        """
        method = plan.method if self.method is None else find_method(self.method)
        tolerance, grid, max_step = plan.tolerance, plan.grid, plan.max_step
        if self.rtol is None and self.atol is None and self.method is None and self.error == "relative":
            # In steps larger than those of the forward solve, the error estimate is often too small.
            max_step = min(max_step, largest)
        if tolerance is not None:
            rtol = tolerance.rtol if self.rtol is None else self.rtol
            atol = tolerance.atol if self.atol is None else self.atol
            tolerance = Tolerance(rtol, atol)
        if self.steps is not None:
            tolerance, grid = None, even_grid(abs(span) / self.steps)
        if tolerance is None:
            method = method.for_fixed_steps()
        return dataclasses.replace(
            plan, method=method, tolerance=tolerance, grid=grid, max_step=max_step, dense=False, compile=False
        )

    def _tolerance(
        self, tolerance: Tolerance | None, quadrature: Quadrature, targets: Sequence[Tensor], like: Tensor
    ) -> Tolerance | None:
        """Return the tolerances of the backward state.

        The adjoint gets the tolerances of y, and the parameter gradients get the smallest of those.
        """

        def extended(tol: float | Tensor) -> float | Tensor:
            if not isinstance(tol, Tensor):
                return tol
            num_parameters = sum(packed_size(x, like) for x in targets) if quadrature is None else 0
            return torch.cat([*[tol] * (1 if self.interpolates else 2), tol.min().expand(num_parameters)])

        return tolerance and Tolerance(extended(tolerance.rtol), extended(tolerance.atol))

    def _norm(self, plan: SolvePlan, targets: Sequence[Tensor], like: Tensor) -> Norm:
        """Return the error norm of the backward solve.

        It is the largest of these errors: that of y, that of the adjoint and, with the full norm, that of each
        parameter gradient. Relative errors, which do not include that of y, are divided by ``ADJOINT_ERROR_FACTOR``.
        """
        num_states = 1 if self.interpolates else 2
        sizes = [like.shape[-1]] * num_states
        if self.norm == "full":
            sizes += [packed_size(target, like) for target in targets]
        divisors = [ADJOINT_ERROR_FACTOR if self.error == "relative" else 1.0] * len(sizes)
        if not self.interpolates:
            divisors[0] = 1.0
        return LargestRms(tuple(sizes), tuple(divisors), plan.group)


@dataclass(frozen=True)
class InterpolatedAdjoint(Adjoint):
    """The continuous adjoint along the dense output of the forward solve.

    y(t) is interpolated instead of solved backward. This is stable where solving y backward is not, and it halves the
    backward state. The options are those of ``Adjoint``.

    Memory: the dense output, which is all stages of all accepted steps.
    """

    name = "interpolated_adjoint"
    interpolates = True
