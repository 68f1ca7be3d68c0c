"""Regularised dynamics: loss terms that keep an ODE easy to solve, for any model and any of its fields.

The loss gets integrals along the solutions: the kinetic energy and the Jacobian's Frobenius norm (RNODE: Finlay,
Jacobsen, Nurbekyan & Oberman 2020, How to train your neural ODE), and the size of a higher derivative (TayNODE: Kelly,
Bettencourt, Johnson & Duvenaud 2020, Learning differential equations that are easy to solve). STEER draws a random end
time (Ghosh, Behl, Dupont, Torr & Namboodiri 2020).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from odebench import ode
from odebench.errors import UsageError
from odebench.models.augmented_state import AugmentedField, FieldEvaluation, Integrand, zero_integrals
from odebench.models.flow import draw_noise
from odebench.ode import Rows
from odebench.ode.problem import times_as_tensor

# The absolute tolerance of the integrals. It is so large that the integrals do not affect the step sizes. They are
# functions of the solution and nearly as exact as the solution (error of 0.6 % of their mean at a tolerance of 1e-3).
# Under error control, the third derivative of a fast field would more than double the evaluations. The tolerance is
# finite, since SciPy's implicit methods take finite differences of this size.
UNCONTROLLED_ATOL = 1e20


@dataclass(frozen=True)
class RegularisationTerms:
    """The weights of the regularisation terms. A weight of 0 turns a term off. D is the size of one sample's state z.

    kinetic: the weight of the integral of |f|^2 / D. jacobian: the weight of the integral of |eps^T df/dz|^2 / D, whose
    mean over the noise eps is the squared Frobenius norm of df/dz divided by D. taylor: the weight of the integral of
    |d^K z/dt^K|^2 / D with K = taylor_order. steer: the last time of a solve is replaced by one drawn uniformly from an
    interval around it; the half width of the interval is this fraction of the distance from the last time but one.
    """

    kinetic: float = 0.0
    jacobian: float = 0.0
    taylor: float = 0.0
    taylor_order: int = 3
    steer: float = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """The nonzero weights of the integrals, by name."""
        weights = {"kinetic": self.kinetic, "jacobian": self.jacobian, "taylor": self.taylor}
        return {name: weight for name, weight in weights.items() if weight}

    def integrand(self, name: str) -> Integrand:
        """The integrand of the integral with this name."""
        if name == "taylor":
            return functools.partial(taylor_norm, order=self.taylor_order)
        return {"kinetic": kinetic_energy, "jacobian": jacobian_norm}[name]

    def with_random_end(self, t: Tensor | Sequence[float]) -> Tensor:
        """Replace the last of the times [..., T] by a random one, drawn from torch's global random state."""
        t = times_as_tensor(t)
        shift = self.steer * (2 * torch.rand(()).item() - 1)
        before, end = t[..., -2:-1], t[..., -1:]
        return torch.cat((t[..., :-1], end + shift * (end - before)), dim=-1)


class RegularisedSolve:
    """``odebench.ode.solve`` with the integrals of ``terms`` added to the state.

    Models get the same solution as without the integrals. ``pop_penalty`` returns the integrals, summed over solves.
    All solves with the same field use the same ``AugmentedField``, so that a compiled step is reused.
    """

    def __init__(self, terms: RegularisationTerms) -> None:
        self._weights = terms.weights
        self._integrands = tuple(terms.integrand(name) for name in self._weights)
        self._augment = functools.lru_cache(maxsize=64)(AugmentedField)
        self._totals: dict[str, Tensor] = {}

    def __call__(
        self,
        f: Callable[..., Any],
        y0: Any,
        t: Tensor | Sequence[float],
        *,
        rtol: float,
        atol: float,
        args: Sequence[Any] = (),
        **options: Any,
    ) -> ode.Solution:
        """See ``odebench.ode.solve``; y0 is a tensor [B, *shape], or the state of an ``AugmentedField``.

        Raises UsageError for solves that cannot be regularised.
        """
        if isinstance(f, AugmentedField):
            base, state = f, y0
        else:
            base, state, args = AugmentedField(f, ()), (y0,), (None, *args)
        _check_can_be_regularised(state[0], options)
        noise, *field_args = args or (None,)
        extended = (*state, *zero_integrals(state[0], len(self._weights)))
        # Keeps the steps the same: the integrals' errors count as 0, which reduces the root mean square by this factor.
        factor = math.sqrt(sum(map(Tensor.numel, state)) / sum(map(Tensor.numel, extended)))
        solution = ode.solve(
            self._extend(base),
            extended,
            t,
            rtol=factor * rtol,
            atol=(factor * atol,) * len(state) + (UNCONTROLLED_ATOL,) * len(self._weights),
            args=(self._noise(base, noise, state[0]), *field_args),
            **options,
        )
        self._add(solution, len(state))
        y = solution.y[: len(state)]
        return replace(solution, y=y if base is f else y[0])

    def pop_penalty(self) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the weighted sum of the integrals since the last call, and tag -> integral; all are batch means.

        Returns (None, {}) if no solve was regularised.
        """
        totals, self._totals = self._totals, {}
        terms = [weight * totals[name] for name, weight in self._weights.items() if name in totals]
        values = {f"dynamics/{name}": total.detach() for name, total in totals.items()}
        return (sum(terms[1:], terms[0]) if terms else None), values

    def _extend(self, base: AugmentedField) -> AugmentedField:
        # Not cached for functions: one may be new at every solve, and a cache would keep its tensors alive.
        augment = self._augment if isinstance(base.field, nn.Module) else AugmentedField
        return augment(base.field, (*base.integrands, *self._integrands))

    def _noise(self, base: AugmentedField, given: Tensor | Rows | None, z0: Tensor) -> Tensor | Rows | None:
        """The noise that the model has chosen; without it, new noise if a term needs noise, else None."""
        if given is not None:
            return given
        if base.noise is not None:
            return Rows(base.noise)
        # Rademacher noise has the least variance of all noise with covariance I.
        return Rows(draw_noise("rademacher", z0)) if "jacobian" in self._weights else None

    def _add(self, solution: ode.Solution, num_base: int) -> None:
        # Times may run backward; the integrals are costs and stay positive.
        t = solution.t.detach()
        sign = torch.sign(t[..., -1] - t[..., 0])
        for name, integral in zip(self._weights, solution.y[num_base:], strict=True):
            mean = (sign.to(integral.device, integral.dtype) * integral[-1]).mean()
            self._totals[name] = self._totals[name] + mean if name in self._totals else mean


def _check_can_be_regularised(z0: Any, options: dict[str, Any]) -> None:
    if not isinstance(z0, Tensor) or z0.dim() < 2:
        raise UsageError("dynamics: regularisation needs a state that is one tensor [B, *shape]; use dynamics=plain")
    if options.get("event") is not None or options.get("dense"):
        raise UsageError("dynamics: solves with events or dense output are not regularised; use dynamics=plain")


def kinetic_energy(evaluation: FieldEvaluation) -> Tensor:
    """|f|^2 / D [B]."""
    return _mean_square(evaluation.dz)


def jacobian_norm(evaluation: FieldEvaluation) -> Tensor:
    """|eps^T df/dz|^2 / D [B]."""
    return _mean_square(evaluation.noise_vjp())


def taylor_norm(evaluation: FieldEvaluation, order: int) -> Tensor:
    """|d^K z/dt^K|^2 / D [B]; K is the order."""
    return _mean_square(solution_derivative(evaluation, order))


def solution_derivative(evaluation: FieldEvaluation, order: int) -> Tensor:
    """d^K z/dt^K along the solution through an evaluation; K is the order. It has the shape of z.

    d^(k+1) z/dt^(k+1) is the k-th derivative of f along the Taylor polynomial of z of degree k. It is computed by k
    nested forward-mode derivatives (Griewank & Walther 2008, Evaluating Derivatives, chapter 13; Kelly et al. 2020,
    appendix A).
    """
    derivatives = [evaluation.dz]
    while len(derivatives) < order:
        along = functools.partial(_field_along_taylor, evaluation, tuple(derivatives))
        for _ in derivatives:
            along = functools.partial(_derivative, along)
        derivatives.append(along(torch.zeros_like(evaluation.t)))
    return derivatives[-1]


def _field_along_taylor(evaluation: FieldEvaluation, derivatives: tuple[Tensor, ...], s: Tensor) -> Tensor:
    """f at t + s and z + s z' + s^2/2 z'' + ...; s has the shape of t."""
    z = evaluation.z
    column = s.reshape(-1, *[1] * (z.dim() - 1)) if s.dim() else s
    step = torch.zeros_like(z)
    for k, derivative in reversed(list(enumerate(derivatives, 1))):
        step = (derivative + step) * (column / k)
    return evaluation.field(evaluation.t + s, z + step)


def _derivative(function: Callable[[Tensor], Tensor], s: Tensor) -> Tensor:
    return torch.func.jvp(function, (s,), (torch.ones_like(s),))[1]


def _mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)
