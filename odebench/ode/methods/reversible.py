"""Reversible methods: the start of a step follows from its result, so that a backward pass needs no stored states.

Each method has an auxiliary state beside the state y, and a small region of stability. In a direction that the field
contracts at the rate lambda, the two states drift apart as exp(|lambda| t). The methods suit fields that contract
little over the span of the solve, with |lambda| times the span up to about 5, like those of neural ODEs. If the drift
becomes too large, the solve ends with the status ``unstable``. Imports no torch.
"""

import dataclasses
from dataclasses import dataclass, field

from odebench.ode.methods import explicit
from odebench.ode.methods.tableau import Tableau


@dataclass(frozen=True)
class ReversibleRungeKutta:
    """The McCallum-Foster coupling, which turns any explicit Runge-Kutta method into a reversible method.

    With Psi_h(t, y) the increment of the base method, a step takes two states y and z to

        y' = c y + (1 - c) z + Psi_h(t, z),    z' = z - Psi_(-h)(t + h, y').

    These equations can be solved for y and z. The method has the order and error estimate of the base method, at twice
    the cost.

    base: the explicit Runge-Kutta method.
    coupling: the number c, between 0 and 1. For a field that contracts at the rate lambda, y and z stay together while
        h |lambda| < -log c, which is 0.11 at c = 0.9, 0.010 at 0.99 and 0.0010 at 0.999. Otherwise they drift apart as
        c^n exp(|lambda| t) after n steps to t. Undoing n steps multiplies round-off by c^-n: 2.7 at c = 0.999 and
        n = 1000, but 3e4 at c = 0.9 and n = 100, which leaves few correct digits in float32. The default is that of the
        authors. It hardly amplifies round-off, and is meant for spans over which the field contracts little. A long
        contracting span needs a smaller c, and float64: at c = 0.8, y and z stay together in an adaptive solve, whose
        steps do not exceed 0.2/|lambda|.

    Raises ValueError for a coupling outside of (0, 1).
    """

    base: Tableau
    coupling: float = 0.999

    options = ("coupling",)
    reversible = True
    stiff = False

    def __post_init__(self) -> None:
        if not 0 < self.coupling < 1:
            raise ValueError(f"coupling must lie between 0 and 1, got {self.coupling}")

    @property
    def name(self) -> str:
        """The name of the base method with the prefix ``reversible_``."""
        return f"reversible_{self.base.name}"

    @property
    def source(self) -> str:
        """The paper by McCallum & Foster, and the source of the base method."""
        return f"McCallum & Foster 2024, Efficient, accurate and stable gradients for neural ODEs; {self.base.source}"

    @property
    def order(self) -> int:
        """The order of the base method."""
        return self.base.order

    @property
    def stages(self) -> int:
        """Twice the number of stages of the base method for fixed steps."""
        return 2 * self.base.for_fixed_steps().stages

    @property
    def adaptive(self) -> bool:
        """Whether the base method is adaptive."""
        return self.base.adaptive

    @property
    def dense_order(self) -> int | None:
        """The order of the base method's dense output."""
        return self.base.dense_order

    def for_fixed_steps(self) -> "ReversibleRungeKutta":
        """Return this method without its error estimate, for fixed steps."""
        return dataclasses.replace(self, base=self.base.for_fixed_steps())


@dataclass(frozen=True)
class AsynchronousLeapfrog:
    """The asynchronous leapfrog of MALI: the state y and a velocity v, initially f(t, y), with one evaluation per step.

    m = y + v h/2,    u = f(t + h/2, m),    v' = v + 2 eta (u - v),    y' = m + v' h/2

    The error estimate is the difference to Euler's method, (v' - v) h/2.

    damping: the number eta, above 0.5 and at most 1. At 1 the method has order 2 and the error of v does not decay: it
        changes its sign in every step, and grows in directions that the field contracts. Below 1 this error decays as
        |1 - 2 eta|^n, but the order is 1, and undoing n steps multiplies round-off by |1 - 2 eta|^-n, which is 5e9 for
        eta = 0.9 and n = 100.

    Raises ValueError for a damping outside of (0.5, 1].
    """

    damping: float = 1.0
    adaptive: bool = field(default=True, repr=False)

    name = "alf"
    options = ("damping",)
    source = "Zhuang, Dvornek, Tatikonda & Duncan 2021, MALI, algorithm 2 and appendix; Mutze 2013"
    stages = 1
    reversible = True
    stiff = False

    def __post_init__(self) -> None:
        if not 0.5 < self.damping <= 1:
            raise ValueError(f"damping must lie above 0.5 and at most at 1, got {self.damping}")

    @property
    def order(self) -> int:
        """The order of a step: 2, or 1 with damping below 1."""
        return 2 if self.damping == 1 else 1

    @property
    def dense_order(self) -> int:
        """The order of the dense output, which is cubic Hermite interpolation with the velocities as slopes."""
        return self.order

    def for_fixed_steps(self) -> "AsynchronousLeapfrog":
        """Return this method without its error estimate, for fixed steps."""
        return dataclasses.replace(self, adaptive=False)


@dataclass(frozen=True)
class ReversibleHeun:
    """The reversible Heun method: the state y and an auxiliary state x, initially y, with one evaluation per step.

    x' = 2 y - x + h f(t, x),    y' = y + h (f(t, x) + f(t + h, x')) / 2

    The error estimate is the difference to Euler's method, h (f(t + h, x') - f(t, x)) / 2. There is no damping: the
    method is stable only for imaginary h lambda with |h lambda| up to 1.
    """

    adaptive: bool = field(default=True, repr=False)

    name = "reversible_heun"
    source = "Kidger, Foster, Li & Lyons 2021, Efficient and accurate gradients for neural SDEs, algorithm 1"
    order = 2
    dense_order = 2
    stages = 1
    reversible = True
    stiff = False

    def for_fixed_steps(self) -> "ReversibleHeun":
        """Return this method without its error estimate, for fixed steps."""
        return dataclasses.replace(self, adaptive=False)


ALF = AsynchronousLeapfrog()
REVERSIBLE_HEUN = ReversibleHeun()
REVERSIBLE_MIDPOINT = ReversibleRungeKutta(explicit.MIDPOINT)
REVERSIBLE_RK4 = ReversibleRungeKutta(explicit.RK4)
REVERSIBLE_BOSH3 = ReversibleRungeKutta(explicit.BOSH3)
REVERSIBLE_DOPRI5 = ReversibleRungeKutta(explicit.DOPRI5)
REVERSIBLE_TSIT5 = ReversibleRungeKutta(explicit.TSIT5)
