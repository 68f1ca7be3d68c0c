"""The solve that a gradient mode runs: in Python, step by step, or compiled whole."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from odebench.ode.compiled.graph import NotCompiledError
from odebench.ode.compiled.run import run_solve
from odebench.ode.events import EventDetector
from odebench.ode.integrate import IntegrationResult, Observer, integrate
from odebench.ode.methods.stepper import Field
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem

T = TypeVar("T")


@dataclass(frozen=True)
class ForwardSolve:
    """A solve that a gradient mode has to run: the problem and the plan.

    observers: observers of the steps. detector: finds the zeros of event functions.
    """

    problem: InitialValueProblem
    plan: SolvePlan
    observers: tuple[Observer, ...] = ()
    detector: EventDetector | None = None

    def result(self, field: Field | None = None, f: Tensor | None = None, *observers: Observer) -> IntegrationResult:
        """Integrate.

        field: the vector field, by default the problem.
        f: the value [N] of the field at the first time, if it was evaluated already.
        observers: further observers of the steps.
        """
        run = self.compiled(run_solve, f is not None)
        return self.eager_result(field, f, *observers) if run is None else run.result

    def compiled(self, run: Callable[[InitialValueProblem, SolvePlan], T], evaluated: bool) -> T | None:
        """The result of run(problem, plan), a compiled loop; None if that is not wanted or not possible.

        evaluated: whether f was evaluated at the first time already.
        """
        if self.plan.compile != "solve":
            return None
        nfe = self.problem.stats.nfe
        try:
            self.problem.stats.nfe -= evaluated  # the graph evaluates f again
            return run(self.problem, self.plan)
        except NotCompiledError:
            self.problem.stats.nfe = nfe
            return None

    def eager_result(
        self, field: Field | None = None, f: Tensor | None = None, *observers: Observer
    ) -> IntegrationResult:
        """Integrate step by step; see ``result``."""
        problem, plan = self.problem, self.plan
        return integrate(
            field or problem,
            problem.y0,
            problem.times,
            replace(plan, compile=False) if plan.compile == "solve" else plan,
            problem.stats,
            f=f,
            observers=(*self.observers, *observers),
            detector=self.detector,
        )
