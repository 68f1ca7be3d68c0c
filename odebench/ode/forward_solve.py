"""The solve that a gradient mode runs: in Python, step by step, or compiled whole."""

from dataclasses import dataclass, replace

from torch import Tensor

from odebench.ode.compiled.graph import NotCompiledError
from odebench.ode.compiled.run import run_compiled, run_fixed
from odebench.ode.events import EventDetector
from odebench.ode.integrate import IntegrationResult, Observer, integrate
from odebench.ode.methods.stepper import Field
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem


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
        problem, plan = self.problem, self.plan
        if plan.compile == "solve":
            nfe = problem.stats.nfe
            try:
                problem.stats.nfe -= f is not None  # the graph evaluates f again
                return run_fixed(problem, plan) if plan.grid else run_compiled(problem, plan).result
            except NotCompiledError:
                problem.stats.nfe = nfe
                plan = replace(plan, compile=False)
        return integrate(
            field or problem,
            problem.y0,
            problem.times,
            plan,
            problem.stats,
            f=f,
            observers=(*self.observers, *observers),
            detector=self.detector,
        )
