"""The 25 non-stiff initial value problems of DETEST, t from 0 to 20.

Hull, Enright, Fellen & Sedgwick 1972, Comparing numerical methods for ordinary differential equations, SIAM Journal on
Numerical Analysis 9(4), 603-637, section 3. Classes: A single equations, B small systems, C moderate systems, D orbits,
E higher order equations.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from odebench.ode import solve

END = 20.0


@dataclass(frozen=True)
class TestProblem:
    """y' = f(t, y), y(0) = y0 [n], float64; ``exact`` is y(20) [n] where it is known in closed form."""

    __test__ = False

    f: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    exact: Tensor | None = None


def _vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _linear(matrix: Tensor, y0: Tensor) -> TestProblem:
    return TestProblem(lambda t, y: torch.mv(matrix, y), y0, torch.matrix_exp(matrix * END) @ y0)


def _first_of(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)[0]


def _single_equations() -> dict[str, TestProblem]:
    return {
        "A1": TestProblem(lambda t, y: -y, _vector(1), _vector(math.exp(-END))),
        "A2": TestProblem(lambda t, y: -0.5 * y**3, _vector(1), _vector(1 / math.sqrt(1 + END))),
        "A3": TestProblem(lambda t, y: y * torch.cos(t), _vector(1), _vector(math.exp(math.sin(END)))),
        "A4": TestProblem(lambda t, y: y / 4 * (1 - y / 20), _vector(1), _vector(20 / (1 + 19 * math.exp(-END / 4)))),
        "A5": TestProblem(lambda t, y: (y - t) / (y + t), _vector(4), _vector(_spiral())),
    }


def _spiral() -> float:
    """y of A5: log(t^2 + y^2) / 2 + atan2(y, t) = log 4 + pi / 2, found by Newton's method."""
    y = 1.0
    for _ in range(20):
        excess = math.log(math.hypot(END, y)) + math.atan2(y, END) - math.log(4) - math.pi / 2
        y -= excess * (END**2 + y**2) / (y + END)
    return y


def _small_systems() -> dict[str, TestProblem]:
    def predator_prey(t: Tensor, y: Tensor) -> Tensor:
        product = y[0] * y[1]
        return torch.stack((2 * (y[0] - product), product - y[1]))

    def chemistry(t: Tensor, y: Tensor) -> Tensor:
        square = y[1] ** 2
        return torch.stack((-y[0], y[0] - square, square))

    def torus(t: Tensor, y: Tensor) -> Tensor:
        radius = torch.hypot(y[0], y[1])
        return torch.stack((-y[1] - y[0] * y[2] / radius, y[0] - y[1] * y[2] / radius, y[0] / radius))

    def rigid_body(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack((y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]))

    reaction = torch.tensor([[-1, 1, 0], [1, -2, 1], [0, 1, -1]], dtype=torch.float64)
    sin, cos = math.sin(END), math.cos(END)
    return {
        "B1": TestProblem(predator_prey, _vector(1, 3)),
        "B2": _linear(reaction, _vector(2, 0, 1)),
        "B3": TestProblem(chemistry, _vector(1, 0, 0)),
        "B4": TestProblem(torus, _vector(3, 0, 0), _vector((2 + cos) * cos, (2 + cos) * sin, sin)),
        "B5": TestProblem(rigid_body, _vector(0, 1, 1)),
    }


def _moderate_systems() -> dict[str, TestProblem]:
    rates = torch.tensor([1] * 9 + [0], dtype=torch.float64)
    chain = torch.diag(-rates) + torch.diag(rates[:-1], -1)
    rates = torch.tensor([*range(1, 10), 0], dtype=torch.float64)
    growing_chain = torch.diag(-rates) + torch.diag(rates[:-1], -1)

    def heat(n: int) -> Tensor:
        side = torch.ones(n - 1, dtype=torch.float64)
        return torch.diag(side, 1) + torch.diag(side, -1) - 2 * torch.eye(n, dtype=torch.float64)

    return {
        "C1": _linear(chain, _first_of(10)),
        "C2": _linear(growing_chain, _first_of(10)),
        "C3": _linear(heat(10), _first_of(10)),
        "C4": _linear(heat(51), _first_of(51)),
        "C5": _outer_planets(),
    }


def _outer_planets() -> TestProblem:
    """The sun and the five outer planets; lengths in astronomical units, times in 100 days, y = positions, velocities.

    y_j'' = k2 (-(m_0 + m_j) y_j / r_j^3 + sum over i not j of m_i ((y_i - y_j) / d_ij^3 - y_i / r_i^3)).
    """
    k2, m_sun = 2.95912208286, 1.00000597682
    masses = _vector(0.954786104043e-3, 0.285583733151e-3, 0.437273164546e-4, 0.517759138449e-4, 0.277777777778e-5)
    positions = (
        *(3.42947415189, 3.35386959711, 1.35494901715),
        *(6.64145542550, 5.97156957878, 2.18231499728),
        *(11.2630437207, 14.6952576794, 6.27960525067),
        *(-30.1552268759, 1.65699966404, 1.43785752721),
        *(-21.1238353380, 28.4465098142, 15.3882659679),
    )
    velocities = (
        *(-0.557160570446, 0.505696783289, 0.230578543901),
        *(-0.415570776342, 0.365682722812, 0.169143213293),
        *(-0.325325669158, 0.189706021964, 0.0877265322780),
        *(-0.0240476254170, -0.287659532608, -0.117219543175),
        *(-0.176860753121, -0.216393453025, -0.0148647893090),
    )
    self_distance = torch.eye(5, dtype=torch.float64)  # keeps a planet's distance to itself from being zero

    def f(t: Tensor, y: Tensor) -> Tensor:
        position = y[:15].view(5, 3)
        to_sun = position / position.norm(dim=1, keepdim=True) ** 3
        difference = position - position[:, None]
        cubes = (difference.square().sum(2) + self_distance) ** 1.5
        attraction = torch.einsum("ji,jik->jk", masses / cubes, difference)
        return torch.cat((y[15:], (k2 * (attraction - m_sun * to_sun - masses @ to_sun)).view(-1)))

    return TestProblem(f, _vector(*positions, *velocities))


def _orbit(eccentricity: float) -> TestProblem:
    e, semi_minor = eccentricity, math.sqrt(1 - eccentricity**2)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.cat((y[2:], -y[:2] / y[:2].norm() ** 3))

    anomaly = END
    for _ in range(100):  # Kepler's equation, by Newton's method
        anomaly -= (anomaly - e * math.sin(anomaly) - END) / (1 - e * math.cos(anomaly))
    sin, cos = math.sin(anomaly), math.cos(anomaly)
    rate = 1 / (1 - e * cos)
    exact = _vector(cos - e, semi_minor * sin, -rate * sin, rate * semi_minor * cos)
    return TestProblem(f, _vector(1 - e, 0, 0, math.sqrt((1 + e) / (1 - e))), exact)


def _higher_order_equations() -> dict[str, TestProblem]:
    def bessel(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack((y[1], -y[1] / (t + 1) - (1 - 0.25 / (t + 1) ** 2) * y[0]))

    def bessel_exact(x: float) -> Tensor:
        value = math.sqrt(2 / (math.pi * x)) * math.sin(x)
        return _vector(value, math.sqrt(2 / (math.pi * x)) * math.cos(x) - value / (2 * x))

    def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack((y[1], (1 - y[0] ** 2) * y[1] - y[0]))

    def duffing(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack((y[1], y[0] ** 3 / 6 - y[0] + 2 * torch.sin(2.78535 * t)))

    def falling_body(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack((y[1], 0.032 - 0.4 * y[1] ** 2))

    def pursuit(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack((y[1], torch.sqrt(1 + y[1] ** 2) / (25 - t)))

    fall = math.sqrt(0.032 * 0.4) * END
    left = 1 - END / 25
    return {
        "E1": TestProblem(bessel, bessel_exact(1.0), bessel_exact(1 + END)),
        "E2": TestProblem(van_der_pol, _vector(2, 0)),
        "E3": TestProblem(duffing, _vector(0, 0)),
        "E4": TestProblem(
            falling_body,
            _vector(30, 0),
            _vector(30 + math.log(math.cosh(fall)) / 0.4, math.sqrt(0.032 / 0.4) * math.tanh(fall)),
        ),
        "E5": TestProblem(
            pursuit, _vector(0, 0), _vector(-12.5 * (math.log(left) + (1 - left**2) / 2), (1 / left - left) / 2)
        ),
    }


PROBLEMS: dict[str, TestProblem] = (
    _single_equations()
    | _small_systems()
    | _moderate_systems()
    | {f"D{i}": _orbit(e) for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), 1)}
    | _higher_order_equations()
)


@functools.cache
def accurate_solution(name: str) -> Tensor:
    """y(20) [n] of a problem by a method of order 8, accurate to nearly round-off."""
    problem = PROBLEMS[name]
    with torch.no_grad():
        return solve(problem.f, problem.y0, [0.0, END], method="dopri8", rtol=1e-12, atol=1e-12).y[-1]


def reference(name: str) -> Tensor:
    """y(20) [n] of a problem: in closed form where there is one."""
    exact = PROBLEMS[name].exact
    return accurate_solution(name) if exact is None else exact
