"""Reference solutions in float64 at a tight tolerance.

Their gradients are those of the ODE, not of a discrete solve.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from odebench import ode
from odebench.bench.cases import CaseProblem, leaves_of, like_state, loss


@dataclass(frozen=True)
class ReferenceSolution:
    """A reference solution.

    states: each tensor [T, *its shape]. gradients: those for the parameters, then those for the initial state; None if
    they were not requested.
    """

    states: list[Tensor]
    gradients: list[Tensor] | None


def solve_reference(problem: CaseProblem, gradients: bool) -> ReferenceSolution:
    """Solve in float64. If ``gradients``, also compute the gradients of ``cases.loss``.

    Raises ModuleNotFoundError for a stiff case without SciPy.
    """
    if problem.case.reference == "sensitivities":
        return _by_sensitivities(problem, gradients)
    field = copy.deepcopy(problem.field).double()
    leaves = [leaf.double().requires_grad_(gradients) for leaf in leaves_of(problem.state)]
    state, times = like_state(problem.state, leaves), problem.times.double()
    tol = problem.case.reference_tol
    with torch.set_grad_enabled(gradients):
        states = ode.solve(field, state, times, rtol=tol, atol=tol, gradient=problem.case.reference).y
        found = torch.autograd.grad(loss(states), [*field.parameters(), *leaves]) if gradients else None
    return ReferenceSolution([leaf.detach() for leaf in leaves_of(states)], list(found) if found else None)


def _by_sensitivities(problem: CaseProblem, gradients: bool) -> ReferenceSolution:
    """Solve y [n] together with its sensitivities S = dy/d(parameters, y0) [n, p + n], by SciPy's Radau.

    dS/dt = (df/dy) S + [df/dparameters, 0].
    """
    from scipy.integrate import solve_ivp

    field_with_jacobians = FIELDS_WITH_JACOBIANS[problem.case.name]
    y0, times = problem.state.numpy(), problem.times.tolist()  # type: ignore[union-attr]
    shapes = [*(p.shape for p in problem.parameters), y0.shape]
    theta = np.concatenate([p.detach().numpy().reshape(-1) for p in problem.parameters])
    n, num_parameters = len(y0), len(theta)

    def variational(t: float, z: np.ndarray) -> np.ndarray:
        rate, df_dtheta, df_dy = field_with_jacobians(theta, z[:n])
        dS_dt = df_dy @ z[n:].reshape(n, -1)
        dS_dt[:, :num_parameters] += df_dtheta
        return np.concatenate([rate, dS_dt.reshape(-1)])

    start = np.hstack([np.zeros((n, num_parameters)), np.eye(n)]).reshape(-1)
    tol = problem.case.reference_tol
    solution = solve_ivp(
        variational if gradients else lambda t, y: field_with_jacobians(theta, y)[0],
        (times[0], times[-1]),
        np.concatenate([y0, start]) if gradients else y0,
        method="Radau",
        t_eval=times,
        rtol=tol,
        atol=tol,
    )
    if not solution.success:
        raise RuntimeError(f"no reference solution: {solution.message}")
    states = torch.from_numpy(solution.y[:n].T.copy()).requires_grad_(gradients)
    if not gradients:
        return ReferenceSolution([states], None)
    (loss_gradient,) = torch.autograd.grad(loss(states), states)
    total = torch.einsum("ti,ijt->j", loss_gradient, torch.from_numpy(solution.y[n:].reshape(n, -1, len(times))))
    parts = total.split([math.prod(shape) for shape in shapes])
    return ReferenceSolution([states.detach()], [part.view(shape) for part, shape in zip(parts, shapes, strict=True)])


# A tuple: dy/dt, its derivative with respect to the parameters, and that with respect to y.
FieldAndJacobians = tuple[np.ndarray, np.ndarray, np.ndarray]


def robertson_with_jacobians(log_rates: np.ndarray, y: np.ndarray) -> FieldAndJacobians:
    """``fields.Robertson`` in NumPy."""
    k1, k2, k3 = np.exp(log_rates)
    a, b, c = y[0], 1e-4 * y[1], y[2]
    slow, fast, back = k1 * a, k2 * b * b, k3 * b * c
    rate = np.array([back - slow, 1e4 * (slow - back - fast), fast])
    df_dtheta = np.array([[-slow, 0, back], [1e4 * slow, -1e4 * fast, -1e4 * back], [0, fast, 0]])
    # The derivative with respect to y2 = 1e4 b.
    df_dy2 = np.array([k3 * c, -1e4 * (k3 * c + 2 * k2 * b), 2 * k2 * b]) * 1e-4
    df_dy = np.array([[-k1, df_dy2[0], k3 * b], [1e4 * k1, df_dy2[1], -1e4 * k3 * b], [0, df_dy2[2], 0]])
    return rate, df_dtheta, df_dy


def van_der_pol_with_jacobians(log_mu: np.ndarray, y: np.ndarray) -> FieldAndJacobians:
    """``fields.VanDerPol`` in NumPy."""
    mu, (x, v) = math.exp(log_mu[0]), y
    damping = mu * (1 - x * x)
    df_dy = np.array([[0.0, 1.0], [-2 * mu * x * v - 1, damping]])
    return np.array([v, damping * v - x]), np.array([[0.0], [damping * v]]), df_dy


FIELDS_WITH_JACOBIANS: dict[str, Callable[[np.ndarray, np.ndarray], FieldAndJacobians]] = {
    "robertson": robertson_with_jacobians,
    "vdp": van_der_pol_with_jacobians,
}


def relative_error(result: list[Tensor], reference: list[Tensor]) -> float:
    """The 2-norm of the difference divided by the 2-norm of the reference, over all tensors."""
    difference = sum((a.double() - b).square().sum() for a, b in zip(result, reference, strict=True))
    norm = sum(b.square().sum() for b in reference)
    return (torch.as_tensor(difference) / torch.as_tensor(norm)).sqrt().item()
