"""Dense output: the solution as a function of time, piecewise polynomial over the accepted steps."""

import bisect
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odebench.ode.arguments import as_number
from odebench.ode.once_differentiable import first_derivative_only
from odebench.ode.torch_func import needs_derivative, to_list
from odebench.ode.transfer import queued

PolynomialWeights = tuple[tuple[float, ...], ...]

# Cubic Hermite interpolation from f at both ends of the step and its mean slope (y_next - y) / h; order 3.
HERMITE: PolynomialWeights = ((1.0, -2.0, 1.0), (0.0, -1.0, 1.0), (0.0, 3.0, -2.0))
LINEAR: PolynomialWeights = ((1.0,),)


def evaluate_weights(weights: PolynomialWeights, thetas: Sequence[float], like: Tensor) -> Tensor:
    """Return the weights w_i(theta) of all slopes i, one row for each theta; see ``Interpolant``.

    like: a tensor with the dtype and device of the result.
    """
    table = weights_by_power(weights)
    theta = torch.tensor(thetas, dtype=table.dtype, device=table.device)
    powers = theta.unsqueeze(1).expand(-1, len(table)).cumprod(1)
    return (powers @ table).to(like.device, like.dtype, non_blocking=True)


@functools.lru_cache(maxsize=64)
def weights_by_power(weights: PolynomialWeights) -> Tensor:
    """Return the weights as a tensor with one row for each power of theta, in float64 on the host."""
    with torch.inference_mode(False):
        columns = tuple(itertools.zip_longest(*weights, fillvalue=0.0))
        return torch.tensor(columns, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Interpolant:
    """The interpolating polynomial of one step (its continuous extension).

    y(t + theta h) = y + h sum_i w_i(theta) k_i, with the polynomials w_i(theta) = p_i1 theta + p_i2 theta^2 + ...

    t, h: the time at which the step starts, and its signed size.
    y: the state [N] at this time.
    slopes: the m slopes k_i, each [N], or all in one tensor [m, N].
    weights: m rows of coefficients p_i1, p_i2, ...
    """

    t: float
    h: float
    y: Tensor
    slopes: Sequence[Tensor] | Tensor
    weights: PolynomialWeights

    def evaluate(self, thetas: Sequence[float]) -> Tensor:
        """Return the states [len(thetas), N] at t + theta h."""
        slopes = self.stacked_slopes()
        return torch.addmm(self.y.unsqueeze(0), evaluate_weights(self.weights, thetas, slopes), slopes, alpha=self.h)

    def derivative(self, thetas: Sequence[float], order: int = 1) -> Tensor:
        """Return dy/dt [len(thetas), N] at t + theta h, or a higher derivative; order: the order of the derivative."""

        def weight(row: Sequence[float], theta: float) -> float:
            powers = range(order, len(row) + 1)
            return sum(math.perm(j, order) * row[j - 1] * theta ** (j - order) for j in powers)

        rows = [[weight(row, theta) for row in self.weights] for theta in thetas]
        slopes = self.stacked_slopes()
        return queued(rows, slopes) @ slopes * self.h ** (1 - order)

    def change(self, thetas: Sequence[float], shifts: Tensor) -> Tensor:
        """Return y(t + theta h + shift) - y(t + theta h), [len(thetas), N].

        It is computed by Taylor's formula, which is exact for a polynomial. If a shift has the value 0 and a graph, the
        result is 0, and its derivatives of every order are right.
        """
        degree, power, total = max(map(len, self.weights)), shifts.unsqueeze(1), torch.zeros_like(self.y)
        for order in range(1, degree + 1):
            total = total + power * self.derivative(thetas, order)
            power = power * shifts.unsqueeze(1) / (order + 1)
        return total

    def copy(self) -> "Interpolant":
        """Return a copy with its own memory, which the solver does not overwrite."""
        slopes = self.slopes.clone() if isinstance(self.slopes, Tensor) else torch.stack(tuple(self.slopes))
        return Interpolant(self.t, self.h, self.y.clone(), slopes, self.weights)

    def stacked_slopes(self) -> Tensor:
        """Return the slopes as one tensor [m, N]."""
        return self.slopes if isinstance(self.slopes, Tensor) else torch.stack(tuple(self.slopes))


Evaluation = Callable[[Interpolant, Sequence[float]], Tensor]
"""A function from an interpolant and thetas to [len(thetas), N], such as ``Interpolant.evaluate``."""


class _RefuseGradient(torch.autograd.Function):
    """Return the states; raise an error if they are differentiated with respect to anything ``source`` depends on."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, source: Tensor) -> Tensor:
        return states.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        raise RuntimeError(
            "dense output is differentiable only with gradient='backprop' and without compile='solve'; use these, or "
            "pass the times of the loss in t"
        )


class DenseOutput:
    """The solution as a function of time, which is called with one time or several.

    If the solve used gradient="backprop", the result is differentiable with respect to everything that the solve was
    differentiable with respect to. With other modes, differentiating it raises RuntimeError. In all modes, the first
    derivative of the result with respect to a tensor of times can be computed.

    interpolants: those of the steps, in order.
    """

    def __init__(
        self,
        pieces: Sequence[Interpolant],
        unflatten: Callable[[Tensor], Any],
        end: float | None = None,
        source: Tensor | None = None,
    ) -> None:
        """Join interpolants.

        pieces: the interpolants of the steps, in order.
        unflatten: converts flat states [*batch, N] to the user's structure.
        end: the last time, which lies in the last step; None stands for the end of that step.
        source: the states of the solve, given if they have a graph that the interpolants lack.
        """
        self._source = source
        self.interpolants = list(pieces)
        self._unflatten = unflatten
        self._sign = math.copysign(1.0, pieces[0].h)
        self._starts = [self._sign * step.t for step in pieces]
        self._end = pieces[-1].t + pieces[-1].h if end is None else end

    @property
    def span(self) -> tuple[float, float]:
        """The first and the last time at which the solution can be evaluated."""
        return self.interpolants[0].t, self._end

    def __call__(self, t: float | Sequence[float] | Tensor) -> Any:
        """Return the state at one time t, or the states [T, ...] at t [T], in the structure of y0.

        The times may be in any order. Raises ValueError for a time outside the span.
        """
        return self._at(t, Interpolant.evaluate, 1)

    def derivative(self, t: float | Sequence[float] | Tensor) -> Any:
        """Return dy/dt at one time t, or dy/dt [T, ...] at t [T].

        It is the derivative of the interpolating polynomial, and so one order less accurate than the states.
        """
        return self._at(t, Interpolant.derivative, 2)

    def detached(self) -> "DenseOutput":
        """Return a copy without the autograd graph."""
        steps = [replace(x, y=x.y.detach(), slopes=x.stacked_slopes().detach()) for x in self.interpolants]
        return DenseOutput(steps, self._unflatten, self._end)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as numbers, lists and detached tensors, for torch.save.

        It contains neither f nor a graph. Raises TypeError for a state that is not made of tuples, lists and dicts.
        """
        interpolants = self.interpolants
        example = self._unflatten(interpolants[0].y.detach())
        _check_containers(example)
        tables = list(dict.fromkeys(step.weights for step in interpolants))
        return {
            "t": [step.t for step in interpolants],
            "h": [step.h for step in interpolants],
            "end": self._end,
            "y": torch.stack([step.y.detach() for step in interpolants]),
            "slopes": [step.stacked_slopes().detach() for step in interpolants],
            "weights": [[list(row) for row in table] for table in tables],
            "weights_of_step": [tables.index(step.weights) for step in interpolants],
            "first_state": example,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "DenseOutput":
        """Rebuild a dense output from its ``state_dict``."""
        tables = [tuple(tuple(row) for row in table) for table in state["weights"]]
        columns = (state["t"], state["h"], state["y"].unbind(), state["slopes"], state["weights_of_step"])
        interpolants = [Interpolant(t, h, y, slopes, tables[i]) for t, h, y, slopes, i in zip(*columns, strict=True)]
        return cls(interpolants, _unflatten_like(state["first_state"]), state["end"])

    def __reduce__(self) -> tuple[Any, ...]:
        # As in ``save``, neither f, which may be a lambda, nor a graph is included.
        return DenseOutput.from_state_dict, (self.state_dict(),)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ``state_dict`` to a file."""
        torch.save(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | None = None) -> "DenseOutput":
        """Read a file that ``save`` wrote. No code from the file is run.

        device: the device of the tensors; None stands for the device that they were saved from.
        """
        return cls.from_state_dict(torch.load(path, map_location=device, weights_only=True))

    def _at(self, t: float | Sequence[float] | Tensor, evaluate: Evaluation, order: int) -> Any:
        """Call ``evaluate`` at t; return the result in the structure of y0.

        order: the order of the derivative of y(t) that gives the gradient of the result with respect to t.
        """
        times, slack = _as_list(t)
        values = self.flat(times, slack, evaluate)
        if self._source is not None:
            values = _RefuseGradient.apply(values, self._source)
        if isinstance(t, Tensor) and needs_derivative(t):
            shift = (first_derivative_only(t) - t.detach()).reshape(-1, 1).to(values.device, values.real.dtype)
            derivative = functools.partial(Interpolant.derivative, order=order)
            values = values + shift * self.flat(times, slack, derivative).detach()
        return self._unflatten(values if _is_sequence(t) else values[0])

    def flat(self, times: Sequence[float], slack: float, evaluate: Evaluation = Interpolant.evaluate) -> Tensor:
        """Return the flat states [T, N] at T times in any order.

        evaluate: computes them from an interpolant and thetas; it may compute other values [len(thetas), N] instead.
        slack: how far a time may lie outside the span, relative to the largest time in it. Raises ValueError for a time
            further outside.
        """
        start, end = self.span
        slack = max(slack * max(abs(start), abs(end)), 1e-9 * abs(end - start))
        for time in times:
            if not min(start, end) - slack <= time <= max(start, end) + slack:
                raise ValueError(f"t={time:.6g} is outside the solution's span [{start:.6g}, {end:.6g}]")
        steps = [max(bisect.bisect_right(self._starts, self._sign * time) - 1, 0) for time in times]
        parts, order = [self.interpolants[0].y.new_empty(0, len(self.interpolants[0].y))], []
        for n in sorted(set(steps)):
            step, inside = self.interpolants[n], [i for i, step_n in enumerate(steps) if step_n == n]
            parts.append(evaluate(step, [(times[i] - step.t) / step.h for i in inside]))
            order += inside
        states = torch.cat(parts)
        return states if order == sorted(order) else states[torch.tensor(order).argsort().to(states.device)]


def _is_sequence(t: Any) -> bool:
    return t.dim() > 0 if isinstance(t, Tensor) else isinstance(t, Iterable) and getattr(t, "ndim", 1) > 0


def _as_list(t: float | Sequence[float] | Tensor) -> tuple[list[float], float]:
    """Return the times as floats, and the relative rounding error of their dtype."""
    if not isinstance(t, Tensor):
        return [as_number("t", time) for time in (t if _is_sequence(t) else [t])], 0.0  # type: ignore[union-attr]
    if t.dim() > 1:
        raise ValueError(f"t must be one time, or several in one dimension, got shape {tuple(t.shape)}")
    return to_list(t.reshape(-1)), torch.finfo(t.dtype).eps if t.is_floating_point() else 0.0


def _check_containers(state: Any) -> None:
    if type(state) in (tuple, list, dict):
        for part in state.values() if isinstance(state, dict) else state:
            _check_containers(part)
    elif not isinstance(state, Tensor):
        kind = type(state).__name__
        raise TypeError(f"a dense output can be saved only for states of tuples, lists and dicts, got {kind}")


def _unflatten_like(example: Any) -> Callable[[Tensor], Any]:
    """Make a function from flat states [*batch, N] to the structure and dtype of an example.

    Each tensor is [*batch, *shape], with its shape in the example.
    """
    leaves, structure = pytree.tree_flatten(example)

    def unflatten(y: Tensor) -> Any:
        parts = y.to(leaves[0].dtype).split([leaf.numel() for leaf in leaves], dim=-1)
        shaped = [part.reshape((*y.shape[:-1], *leaf.shape)) for part, leaf in zip(parts, leaves, strict=True)]
        return pytree.tree_unflatten(shaped, structure)

    return unflatten
