"""What a solve may read from its device and copy to it: a table, and why."""

from collections.abc import Callable
from dataclasses import dataclass

from odebench.ode import METHODS, Tableau
from odebench.ode.methods.adams import FixedOrderAdams, VariableOrderAdams
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.reversible import AsynchronousLeapfrog
from odebench.ode.methods.rosenbrock import Rosenbrock
from odebench.ode.methods.scipy_methods import SciPyMethod

READ, QUEUED = "reads", "queued"


@dataclass(frozen=True)
class Case:
    """One pass of one solve. gradient: a mode, or "no_grad". autonomous: f does not use t."""

    name: str
    gradient: str
    adaptive: bool
    per_sample: bool
    direction: int = 1
    autonomous: bool = False
    backward: bool = False

    @property
    def method(self):
        return METHODS[self.name]

    @property
    def fsal(self):
        return self.adaptive and isinstance(self.method, Tableau) and self.method.fsal

    @property
    def adjoint(self):
        """Whether this pass solves the adjoint equation."""
        return self.backward and self.gradient in ("adjoint", "interpolated_adjoint")

    def of(self, *kinds):
        return isinstance(self.method, kinds)


@dataclass(frozen=True)
class Allowed:
    """At most so many transfers in one pass of a solve: the sum of the numbers, each times how often it happens.
    There is no row for copies that the host waits for: after the first solve none is allowed.

    kind, place: "reads", where the host waits for a value, or "queued" copies, where it does not; FILE FUNCTION in
        odebench/ode. ``when``: the passes that it occurs in.
    solve, interval, inside: for each solve, interval between two output times, output time inside a step.
    attempt, evaluation: for each attempted step, and evaluation of f. iteration, group: for each Newton iteration, and
        for each group of stages that an attempted step solves together.
    """

    kind: str
    place: str
    why: str
    when: Callable[[Case], bool]
    solve: int = 0
    interval: int = 0
    inside: int = 0
    attempt: int = 0
    evaluation: int = 0
    iteration: int = 0
    group: int = 0


def is_forward(case):
    return not case.backward and not case.per_sample


def is_checkpoint(case):
    return case.backward and case.gradient == "checkpoint" and not case.per_sample


def is_reversible_with_monitor(case):
    return case.method.reversible and not (case.of(AsynchronousLeapfrog) and case.adaptive)


TABLE = [
    # Every method.
    Allowed(
        READ,
        "integrate.py _cut_non_finite",
        "after the last fixed step: whether the states are finite",
        lambda c: is_forward(c) and not c.adaptive,
        solve=1,
    ),
    Allowed(
        READ,
        "integrate.py _cut_non_finite",
        "the same for the backward solve of each interval between outputs",
        lambda c: c.adjoint and not c.adaptive,
        interval=1,
    ),
    Allowed(
        READ,
        "control.py rms",
        "the host accepts or rejects a step by its error, and finds the first step size from three norms",
        lambda c: is_forward(c) and c.adaptive and not c.of(SciPyMethod, VariableOrderAdams),
        solve=3,
        attempt=1,
    ),
    Allowed(
        READ,
        "control.py rms",
        "the scale of the gradient, which the error of the backward solve is relative to",
        lambda c: c.adjoint,
        interval=1,
    ),
    Allowed(
        READ,
        "control.py rms_of_parts",
        "the host accepts or rejects a backward step by its error",
        lambda c: c.adjoint and c.adaptive and not c.of(SciPyMethod, VariableOrderAdams),
        attempt=1,
    ),
    Allowed(
        QUEUED,
        "dense.py evaluate_weights",
        "the weights of the interpolant at an output inside a step, which the host knows once the step is accepted",
        lambda c: is_forward(c) and c.adaptive and c.gradient != "reversible" and not c.of(SciPyMethod),
        inside=1,
    ),
    Allowed(
        QUEUED,
        "dense.py evaluate_weights",
        "y(t) on the interpolant of the forward solve, at the time of each evaluation",
        lambda c: c.backward and c.gradient == "interpolated_adjoint",
        evaluation=1,
    ),
    # Explicit Runge-Kutta methods.
    Allowed(
        READ,
        "methods/explicit_stepper.py stiffness_of",
        "the estimate of stiffness, after the last step",
        lambda c: is_forward(c) and c.adaptive and c.of(Tableau) and c.method.last_differences is not None,
        solve=1,
    ),
    Allowed(
        QUEUED,
        "dense.py evaluate_weights",
        "the weights of an output inside a step; once more where the step's last stage is the next one's first",
        lambda c: is_checkpoint(c) and c.adaptive,
        inside=2,
    ),
    # Adams methods.
    Allowed(
        QUEUED,
        "methods/slope_history.py SlopeBuffer.combine",
        "weights that depend on the sizes of the last steps, for the predictor and for the corrector",
        lambda c: c.of(FixedOrderAdams, VariableOrderAdams) and c.gradient != "backprop",
        attempt=2,
    ),
    Allowed(
        QUEUED,
        "methods/slope_history.py SlopeBuffer.weighted_sums",
        "weights that depend on the sizes of the last steps, for the errors of up to four orders",
        lambda c: c.of(VariableOrderAdams) and c.gradient != "backprop",
        attempt=2,
    ),
    Allowed(
        QUEUED,
        "methods/slope_history.py SlopeList.weighted_sums",
        "the same with a graph, where sums of slopes take their weights as Python numbers",
        lambda c: c.of(VariableOrderAdams) and c.gradient == "backprop" and not c.backward,
        attempt=2,
    ),
    Allowed(
        READ,
        "control.py rms",
        "the host chooses the order by the errors of up to four orders",
        lambda c: is_forward(c) and c.of(VariableOrderAdams),
        solve=3,
        attempt=4,
    ),
    Allowed(
        READ,
        "control.py rms_of_parts",
        "the host chooses the order by the errors of up to four orders",
        lambda c: c.adjoint and c.of(VariableOrderAdams),
        attempt=4,
    ),
    Allowed(
        READ,
        "methods/adams_fixed_stepper.py FixedOrderAdamsStepper._converged",
        "whether the corrector's iteration, one evaluation each, has converged",
        lambda c: c.of(FixedOrderAdams) and c.method.implicit and (is_forward(c) or c.adjoint),
        evaluation=1,
    ),
    # Reversible methods.
    Allowed(
        READ,
        "methods/reversible_stepper.py _DriftMonitor.check",
        "whether the two states of the method drift apart, after an accepted step",
        lambda c: is_reversible_with_monitor(c) and (is_forward(c) or c.adjoint),
        attempt=1,
    ),
    # Implicit methods.
    Allowed(
        READ,
        "control.py rms",
        "whether the Newton iteration has converged",
        lambda c: c.of(ImplicitTableau) and (is_forward(c) or is_checkpoint(c)),
        iteration=1,
    ),
    Allowed(
        READ,
        "control.py rms_of_parts",
        "whether the Newton iteration of the backward solve has converged",
        lambda c: c.of(ImplicitTableau) and c.adjoint,
        iteration=1,
    ),
    Allowed(
        QUEUED,
        "methods/implicit_stepper.py ImplicitRungeKuttaStepper._guess",
        "the first guess extrapolates the stages of the last step, by the ratio of the step sizes",
        lambda c: c.of(ImplicitTableau) and c.method.a[0][0] != 0 and (is_forward(c) or c.adjoint),
        attempt=1,
    ),
    Allowed(
        READ,
        "methods/newton.py _solve_transposed_dense",
        "torch.linalg.solve raises an error for a singular matrix, once for each stage or all of a step",
        lambda c: c.of(ImplicitTableau) and c.backward and c.gradient in ("backprop", "checkpoint"),
        group=1,
    ),
    # Rosenbrock methods.
    Allowed(
        QUEUED,
        "dense.py evaluate_weights",
        "the weights at the nodes of the parameter gradient's quadrature, once",
        lambda c: c.of(Rosenbrock) and c.adjoint,
        solve=1,
    ),
    Allowed(
        QUEUED,
        "dense.py Interpolant.derivative",
        "dy/dt of the interpolant at the start of a step, for the derivative with respect to time",
        lambda c: c.of(Rosenbrock) and c.backward and c.gradient == "interpolated_adjoint",
        attempt=1,
    ),
    Allowed(
        READ,
        "methods/jacobian.py value_and_derivatives",
        "whether f changes with time, by a difference, where its graph does not contain t",
        lambda c: c.of(Rosenbrock) and c.autonomous and not (c.backward and c.gradient != "adjoint"),
        attempt=1,
    ),
    # SciPy's methods, which compute on the host.
    Allowed(
        READ,
        "scipy_bridge.py _FieldAdapter.array",
        "SciPy computes on the host: it reads dy/dt, and the state where a solve starts",
        lambda c: c.of(SciPyMethod),
        interval=1,
        evaluation=1,
    ),
    Allowed(
        QUEUED,
        "scipy_bridge.py _FieldAdapter.state",
        "SciPy computes on the host: it copies the state of each evaluation and each output",
        lambda c: c.of(SciPyMethod),
        interval=1,
        evaluation=1,
    ),
    # Per-sample stepping: the host chooses the step size of each row.
    Allowed(
        READ,
        "per_sample/solving.py _mark_non_finite",
        "after the last fixed step: whether the states are finite",
        lambda c: c.per_sample and not c.backward and not c.adaptive,
        solve=1,
    ),
    Allowed(
        READ,
        "per_sample/problem.py row_rms",
        "the host accepts or rejects the step of each row by its error; three norms give the first step sizes",
        lambda c: c.per_sample and not c.backward and c.adaptive,
        solve=3,
        attempt=1,
    ),
    Allowed(
        READ,
        "per_sample/loop.py RowLoop._drop_non_finite",
        "whether f is finite at the first time, as rows where it is not cannot start",
        lambda c: c.per_sample and not c.backward and c.adaptive,
        solve=1,
    ),
    Allowed(
        READ,
        "per_sample/loop.py RowLoop._drop_non_finite",
        "whether f is finite at the start of the next step, as zero times NaN in a graph is NaN",
        lambda c: c.per_sample and not c.backward and c.adaptive and c.gradient == "backprop" and not c.fsal,
        attempt=1,
    ),
    Allowed(
        QUEUED,
        "per_sample/problem.py RowProblem.on_device",
        "step sizes and stage times of the rows; the first time, and the step of the search for the first step size",
        lambda c: c.per_sample and not c.backward,
        solve=4,
        inside=2,
        attempt=2,
    ),
    Allowed(
        QUEUED,
        "per_sample/problem.py RowProblem.on_device",
        "the time of the first stage of the next step, unless it is the last stage of this one",
        lambda c: c.per_sample and not c.backward and not c.fsal,
        attempt=1,
    ),
    Allowed(
        QUEUED,
        "per_sample/problem.py RowProblem.on_device",
        "the times of the first stage and of all stages, and the step sizes, when a step is evaluated again",
        lambda c: c.per_sample and c.backward and c.gradient == "checkpoint",
        inside=2,
        attempt=3,
    ),
    Allowed(
        QUEUED,
        "per_sample/problem.py take_rows",
        "the indices of the rows with an output in the step, and of those that go on",
        lambda c: c.per_sample and not c.backward,
        interval=1,
        inside=1,
    ),
    Allowed(
        QUEUED,
        "per_sample/problem.py take_rows",
        "the indices of the rows of a step, and of their outputs",
        lambda c: c.per_sample and c.backward and c.gradient == "checkpoint",
        interval=2,
        inside=1,
        attempt=1,
    ),
    Allowed(
        QUEUED,
        "per_sample/problem.py put_rows",
        "where the states belong in the result; the rows whose next first stage an interpolant evaluated",
        lambda c: c.per_sample and not c.backward,
        solve=1,
        inside=1,
    ),
    Allowed(
        QUEUED,
        "per_sample/problem.py put_rows",
        "the indices of the rows of a step",
        lambda c: c.per_sample and c.backward and c.gradient == "checkpoint",
        attempt=1,
    ),
    *(
        Allowed(
            QUEUED,
            f"per_sample/{place}",
            "rows and times of outputs inside a step",
            lambda c: c.per_sample and c.adaptive and not (c.backward and c.gradient == "backprop"),
            inside=1,
        )
        for place in ("output.py evaluate_outputs", "stepping.py RowStepper.interpolant", "stepping.py interpolate")
    ),
]
