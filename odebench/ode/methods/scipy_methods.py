"""SciPy's solvers as methods. Imports neither torch nor SciPy, so that the command line can list methods."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SciPyMethod:
    """A solver of SciPy, which performs the whole solve, on the CPU and in float64.

    order: the highest order of its steps.
    solver: a method name of ``scipy.integrate.solve_ivp``, or "vode_adams".
    stages: the smallest number of evaluations in a step.
    matrix: whether the solver stores an N x N matrix for a state of N numbers.
    """

    name: str
    source: str
    order: int
    solver: str
    stages: int
    stiff: bool = False
    matrix: bool = False

    adaptive = True
    reversible = False

    def for_fixed_steps(self) -> "SciPyMethod":
        """Return this method: it has no fixed steps, and ``find_conflict`` refuses them."""
        return self


RK23 = SciPyMethod("scipy_rk23", "Bogacki & Shampine 1989, by SciPy", 3, "RK23", stages=3)
RK45 = SciPyMethod("scipy_rk45", "Dormand & Prince 1980, by SciPy", 5, "RK45", stages=6)
DOP853 = SciPyMethod("scipy_dop853", "Hairer, Norsett & Wanner 1993, by SciPy", 8, "DOP853", stages=12)
RADAU = SciPyMethod("scipy_radau", "Hairer & Wanner 1996, by SciPy", 5, "Radau", stages=3, stiff=True, matrix=True)
BDF = SciPyMethod("scipy_bdf", "Shampine & Reichelt 1997, by SciPy", 5, "BDF", stages=1, stiff=True, matrix=True)
LSODA = SciPyMethod(
    "scipy_lsoda", "Hindmarsh 1983 and Petzold 1983, ODEPACK by SciPy", 12, "LSODA", stages=1, stiff=True, matrix=True
)
VODE_ADAMS = SciPyMethod(
    "vode_adams", "Brown, Byrne & Hindmarsh 1989, VODE by SciPy, functional iteration", 12, "vode_adams", stages=1
)

SCIPY_METHODS = {method.solver: method for method in (RK23, RK45, DOP853, RADAU, BDF, LSODA, VODE_ADAMS)}
