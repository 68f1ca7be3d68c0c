"""A Runge-Kutta method as data. Needs no torch, so that methods can be listed and checked without it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau of an explicit Runge-Kutta method with s stages.

    Stage i is k_i = f(t + c_i h, y + h sum_{j<i} a_ij k_j) and the step is y + h sum_i b_i k_i.

    name, source: what users call it, and where its numbers come from.
    order: order of the step.
    c: s nodes; the first is 0.
    a: s rows, row i with i coefficients.
    b: s weights.
    error: s weights whose sum over the stages, times h, estimates the error of the step (b minus the
        embedded weights); None for a method without step size control.
    dense: s rows of coefficients p_i1, p_i2, ... of the continuous extension
        y(t + theta h) = y + h sum_i (p_i1 theta + p_i2 theta^2 + ...) k_i; None where there is none.
    dense_order: order of that extension.
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

    def __post_init__(self) -> None:
        s = len(self.c)
        lengths_fit = len(self.b) == s and [len(row) for row in self.a] == list(range(s))
        if not lengths_fit or any(w is not None and len(w) != s for w in (self.error, self.dense)):
            raise ValueError(f"tableau {self.name}: c, b, error and dense need {s} entries, row i of a needs i")
        if (self.error is None) != (self.dense is None):
            raise ValueError(f"tableau {self.name}: an adaptive method needs error weights and a dense output")

    @property
    def stages(self) -> int:
        """Number of stages s."""
        return len(self.c)

    @property
    def adaptive(self) -> bool:
        """Whether the method estimates its error, and so can choose its step sizes."""
        return self.error is not None

    @property
    def fsal(self) -> bool:
        """First same as last: the last stage is f at the end of the step, the next step's first stage."""
        return self.stages > 1 and self.c[-1] == 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    def fixed(self) -> "Tableau":
        """The same step without what only error control needs: for fixed steps."""
        s = self.stages - 1 if self.fsal else self.stages
        return Tableau(self.name, self.source, self.order, self.c[:s], self.a[:s], self.b[:s])
