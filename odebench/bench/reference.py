"""The truth that errors are measured against: the ODE solved in float64 with a tight tolerance, and the gradient of
that solution, which is the true ODE's and not that of any discrete solve."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from odebench import ode
from odebench.bench.cases import CaseProblem, leaves_of, like, loss


@dataclass(frozen=True)
class ReferenceSolution:
    """states: each tensor [T, *its shape]. gradients: of the parameters, then of the state; None if not asked for."""

    states: list[Tensor]
    gradients: list[Tensor] | None


def solve_reference(problem: CaseProblem, gradients: bool) -> ReferenceSolution:
    """The problem's solution in float64, with the gradients of ``works.loss`` where asked for.

    Raises ModuleNotFoundError for a stiff problem without SciPy.
    """
    if problem.work.reference == "sensitivities":
        return _by_sensitivities(problem, gradients)
    field = copy.deepcopy(problem.field).double()
    leaves = [leaf.double().requires_grad_(gradients) for leaf in leaves_of(problem.state)]
    state, times = like(problem.state, leaves), problem.times.double()
    tol = problem.work.reference_tol
    mode = "adjoint" if problem.work.reference == "engine_adjoint" else "backprop"
    with torch.set_grad_enabled(gradients):
        states = ode.solve(field, state, times, rtol=tol, atol=tol, gradient=mode).y
        found = torch.autograd.grad(loss(states), [*field.parameters(), *leaves]) if gradients else None
    return ReferenceSolution([leaf.detach() for leaf in leaves_of(states)], list(found) if found else None)


def _by_sensitivities(problem: CaseProblem, gradients: bool) -> ReferenceSolution:
    """y [n] with S = dy/d(parameters, y0) [n, p + n], dS/dt = (df/dy) S + [df/dparameters, 0], by SciPy's Radau."""
    from scipy.integrate import solve_ivp

    linearised = LINEARISED[problem.work.name]
    y0, times = problem.state.numpy(), problem.times.tolist()  # type: ignore[union-attr]
    shapes = [*(p.shape for p in problem.parameters), y0.shape]
    theta = np.concatenate([p.detach().numpy().reshape(-1) for p in problem.parameters])
    n, num_parameters = len(y0), len(theta)

    def augmented(t: float, z: np.ndarray) -> np.ndarray:
        rate, of_theta, of_y = linearised(theta, z[:n])
        slopes = of_y @ z[n:].reshape(n, -1)
        slopes[:, :num_parameters] += of_theta
        return np.concatenate([rate, slopes.reshape(-1)])

    start = np.hstack([np.zeros((n, num_parameters)), np.eye(n)]).reshape(-1)
    tol = problem.work.reference_tol
    solution = solve_ivp(
        augmented if gradients else lambda t, y: linearised(theta, y)[0],
        (times[0], times[-1]),
        np.concatenate([y0, start]) if gradients else y0,
        method="Radau",
        t_eval=times,
        rtol=tol,
        atol=tol,
    )
    if not solution.success:
        raise RuntimeError(f"no reference: {solution.message}")
    states = torch.from_numpy(solution.y[:n].T.copy()).requires_grad_(gradients)
    if not gradients:
        return ReferenceSolution([states], None)
    (slope,) = torch.autograd.grad(loss(states), states)
    total = torch.einsum("ti,ijt->j", slope, torch.from_numpy(solution.y[n:].reshape(n, -1, len(times))))
    parts = total.split([math.prod(shape) for shape in shapes])
    return ReferenceSolution([states.detach()], [part.view(shape) for part, shape in zip(parts, shapes, strict=True)])


FieldAndJacobians = tuple[np.ndarray, np.ndarray, np.ndarray]


def linearised_robertson(log_rates: np.ndarray, y: np.ndarray) -> FieldAndJacobians:
    """``fields.Robertson``: rate [3], and its derivatives with respect to the parameters and to y."""
    k1, k2, k3 = np.exp(log_rates)
    a, b, c = y[0], 1e-4 * y[1], y[2]
    slow, fast, back = k1 * a, k2 * b * b, k3 * b * c
    rate = np.array([back - slow, 1e4 * (slow - back - fast), fast])
    of_rates = np.array([[-slow, 0, back], [1e4 * slow, -1e4 * fast, -1e4 * back], [0, fast, 0]])
    # Of b by y2 = 1e4 b is 1e-4.
    by_b = np.array([k3 * c, -1e4 * (k3 * c + 2 * k2 * b), 2 * k2 * b]) * 1e-4
    of_y = np.array([[-k1, by_b[0], k3 * b], [1e4 * k1, by_b[1], -1e4 * k3 * b], [0, by_b[2], 0]])
    return rate, of_rates, of_y


def linearised_van_der_pol(log_mu: np.ndarray, y: np.ndarray) -> FieldAndJacobians:
    """``fields.VanDerPol``: rate [2], and its derivatives with respect to the parameter and to y."""
    mu, (x, v) = math.exp(log_mu[0]), y
    damping = mu * (1 - x * x)
    of_y = np.array([[0.0, 1.0], [-2 * mu * x * v - 1, damping]])
    return np.array([v, damping * v - x]), np.array([[0.0], [damping * v]]), of_y


LINEARISED: dict[str, Callable[[np.ndarray, np.ndarray], FieldAndJacobians]] = {
    "robertson": linearised_robertson,
    "vdp": linearised_van_der_pol,
}


def relative_error(found: list[Tensor], truth: list[Tensor]) -> float:
    """The 2-norm of the difference over that of the truth, all tensors together."""
    difference = sum((a.double() - b).square().sum() for a, b in zip(found, truth, strict=True))
    size = sum(b.square().sum() for b in truth)
    return (torch.as_tensor(difference) / torch.as_tensor(size)).sqrt().item()
