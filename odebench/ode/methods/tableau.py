"""Butcher tableaus of Runge-Kutta methods. Imports no torch, so that the command line can list methods."""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ButcherTableau:
    """The coefficients of a Runge-Kutta method with s stages.

    Stage i is k_i = f(t + c_i h, y + h sum_j a_ij k_j), and the step is y + h sum_i b_i k_i.

    name, source: the name of the method for users, and the publication of its coefficients.
    order: the order of a step.
    c: the s nodes.
    a: s rows of coefficients.
    b: the s weights.
    error: s weights of the error estimate h sum_i error_i k_i; None for a method without step size control.
    dense: a row for each stage with the coefficients p_i1, p_i2, ... of the dense output
        y(t + theta h) = y + h sum_i (p_i1 theta + p_i2 theta^2 + ...) k_i; None if the method has no dense output.
    dense_order: the order of the dense output.
    """

    name: str
    source: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] | None = None
    dense: tuple[tuple[float, ...], ...] | None = None
    dense_order: int | None = None

    reversible = False

    @property
    def stages(self) -> int:
        """The number of stages s of a step."""
        return len(self.c)

    @property
    def adaptive(self) -> bool:
        """Whether the method estimates its error, and so can choose its step sizes."""
        return self.error is not None


@dataclass(frozen=True)
class Tableau(ButcherTableau):
    """The Butcher tableau of an explicit Runge-Kutta method.

    Row i = 0, 1, ... of ``a`` has i coefficients, and the first node is 0.

    extra_c, extra_a: the nodes and rows of e extra stages, numbered s, s + 1, ..., that only dense output needs. They
        are evaluated if an output lies inside the step. Row i has s + i coefficients.
    dense: s + e rows; an adaptive method must have it.
    """

    extra_c: tuple[float, ...] = ()
    extra_a: tuple[tuple[float, ...], ...] = ()

    stiff = False

    def __post_init__(self) -> None:
        s, e = len(self.c), len(self.extra_c)
        rows = [len(row) for row in (*self.a, *self.extra_a)]
        if len(self.b) != s or rows != list(range(s + e)) or (self.error is not None and len(self.error) != s):
            raise ValueError(f"tableau {self.name}: c, b and error need {s} entries, row i = 0, 1, ... of a needs i")
        if (self.error is None) != (self.dense is None):
            raise ValueError(f"tableau {self.name}: an adaptive method needs error weights and a dense output")
        if (self.dense is None) != (self.dense_order is None):
            raise ValueError(f"tableau {self.name}: a dense output needs its order, dense_order")
        if len(self.dense or ()) != (s + e if self.dense else 0) or (e and not self.dense):
            raise ValueError(f"tableau {self.name}: dense needs {s + e} rows, one for each stage and extra stage")

    @property
    def dense_stages(self) -> int:
        """The number of stages s + e of the dense output."""
        return len(self.c) + len(self.extra_c)

    @cached_property
    def fsal(self) -> bool:
        """Whether the last stage is f at the end of the step, and so the first stage of the next step.

        This property is called FSAL, first same as last.
        """
        return self.stages > 1 and self.c[-1] == 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    @cached_property
    def end_stage(self) -> int | None:
        """The number of the stage that is f at the end of the step, so that the next step need not evaluate it.

        It is the last stage of an FSAL method, or else the first extra stage; None if neither is f at the end.
        """
        if self.fsal:
            return self.stages - 1
        return self.stages if self.extra_c[:1] == (1.0,) and self.extra_a[0] == self.b else None

    @cached_property
    def last_differences(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """The weights of the stages in k_s - k_(s-1) and in (Y_s - Y_(s-1)) / h, for the stiffness estimate.

        None if the last two stages have different nodes.
        """
        last = self.stages - 1
        if not self.adaptive or last < 2 or self.c[last] != self.c[last - 1]:
            return None
        before = (*self.a[last - 1], 0.0)
        states = (*(x - y for x, y in zip(self.a[last], before, strict=True)), 0.0)
        return (*[0.0] * (last - 1), -1.0, 1.0), states

    def __hash__(self) -> int:
        # Equal methods have equal names; hashing all coefficients takes longer than many operations.
        return hash(self.name)

    def for_fixed_steps(self) -> "Tableau":
        """Return this method without its error estimate, for fixed steps."""
        return self._without_error

    @cached_property
    def _without_error(self) -> "Tableau":
        s = self.stages - 1 if self.fsal else self.stages
        return Tableau(self.name, self.source, self.order, self.c[:s], self.a[:s], self.b[:s])


def error_weights(b: tuple[float, ...], embedded: tuple[float, ...]) -> tuple[float, ...]:
    """Return the weights of the error estimate: the weights b minus those of the embedded method."""
    return tuple(x - y for x, y in zip(b, embedded, strict=True))
