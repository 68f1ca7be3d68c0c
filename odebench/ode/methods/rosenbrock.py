"""Rosenbrock-Wanner methods for stiff fields, which are linearly implicit: they need no Newton iterations.

Imports no torch.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rosenbrock:
    """A Rosenbrock method with s stages.

    It is written in the form that needs no products with the Jacobian J = df/dy (Hairer & Wanner 1996, Solving Ordinary
    Differential Equations II, section IV.7):

        (I - h gamma J) u_i = h gamma f(t + alpha_i h, y + sum_{j<i} a_ij u_j) + gamma sum_{j<i} c_ij u_j
                              + h^2 gamma gamma_i df/dt,
        step: y + sum_i b_i u_i.

    name, source: the name of the method for users, and the publication of its coefficients.
    order: the order of a step.
    gamma: the diagonal coefficient.
    alpha: the s nodes; the first is 0.
    a, c: the coefficients of u_j: s rows, of which row i = 0, 1, ... has i entries.
    gammas: the s weights of df/dt.
    b: the s weights of the step.
    error: the s weights of the error estimate, which is proportional to h^order; None for fixed steps.
    dense: s rows of coefficients p_i1, p_i2, ... of y(t + theta h) = y + sum_i (p_i1 theta + p_i2 theta^2 + ...) u_i.
    dense_order: the order of the dense output.
    """

    name: str
    source: str
    order: int
    gamma: float
    alpha: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    c: tuple[tuple[float, ...], ...]
    gammas: tuple[float, ...]
    b: tuple[float, ...]
    error: tuple[float, ...] | None
    dense: tuple[tuple[float, ...], ...]
    dense_order: int

    stiff = True
    reversible = False
    one_step = True

    def __post_init__(self) -> None:
        s = len(self.alpha)
        if not all(len(row) == s for row in (self.b, self.gammas, self.error or self.b, self.dense)):
            raise ValueError(f"method {self.name}: b, gammas, error and dense need {s} entries")
        if not all([len(row) for row in rows] == list(range(s)) for rows in (self.a, self.c)):
            raise ValueError(f"method {self.name}: row i = 0, 1, ... of a and c needs i entries")

    @property
    def stages(self) -> int:
        """The number of stages s of a step."""
        return len(self.alpha)

    @property
    def adaptive(self) -> bool:
        """Whether the method estimates its error, and so can choose its step sizes."""
        return self.error is not None

    def for_fixed_steps(self) -> "Rosenbrock":
        """Return this method without its error estimate, for fixed steps."""
        return replace(self, error=None)


_RODAS4_B = (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950, 1.0, 1.0)
# The dense output is y + sum_i theta (b_i + (1 - theta) (d_i + theta e_i)) u_i.
_RODAS4_D = (10.12623508344586, -7.487995877610167, -34.80091861555747, -7.992771707568823, 1.025137723295662, 0.0)
_RODAS4_E = (-0.6762803392801253, 6.087714651680015, 16.43084320892478, 24.76722511418386, -6.594389125716872, 0.0)

RODAS4 = Rosenbrock(
    name="rodas4",
    source="Hairer & Wanner 1996, section IV.10, RODAS, 4(3); L-stable",
    order=4,
    gamma=0.25,
    alpha=(0.0, 0.386, 0.21, 0.63, 1.0, 1.0),
    a=(
        (),
        (1.544,),
        (0.9466785280815826, 0.2557011698983284),
        (3.314825187068521, 2.896124015972201, 0.9986419139977817),
        _RODAS4_B[:4],
        _RODAS4_B[:5],
    ),
    c=(
        (),
        (-5.6688,),
        (-2.430093356833875, -0.2063599157091915),
        (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
        (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.70890893206160),
        (8.083246795921522, -7.981132988064893, -31.52159432874371, 16.31930543123136, -6.058818238834054),
    ),
    gammas=(0.25, -0.1043, 0.1035, -0.0362, 0.0, 0.0),
    b=_RODAS4_B,
    error=(0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    dense=tuple((b + d, e - d, -e) for b, d, e in zip(_RODAS4_B, _RODAS4_D, _RODAS4_E, strict=True)),
    dense_order=3,
)
