"""Normalizing flows: chains of invertible transforms from data to a Gaussian base; an ODE is one such transform.

In all of them the base is at time 0, and the data are at the end time.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from odebench import ode
from odebench.errors import UsageError
from odebench.models.augmented_state import AugmentedField, exact_trace, hutchinson_trace, zero_integrals
from odebench.ode import Rows
from odebench.ode.noise import find_layers

Solve = Callable[..., ode.Solution]
SolveStats = tuple[ode.Stats, ...]
TransformResult = tuple[Tensor, Tensor, SolveStats]
TraceMethod = Literal["exact", "hutchinson"]
NoiseDistribution = Literal["rademacher", "gaussian"]

# Without a closed form, an exact trace takes one vector-Jacobian product for each dimension at every evaluation.
EXACT_TRACE_LIMIT = 64


class Transform(Protocol):
    """A module that maps data [B, *shape] to the base [B, *shape], and back."""

    @property
    def duration(self) -> float:
        """The length of the transform's time interval."""

    def to_base(self, x: Tensor, solve: Solve, trace: TraceMethod | None) -> TransformResult:
        """Return z at the base, log |det dz/dx| [B], and the statistics of each solve."""

    def from_base(self, z: Tensor, solve: Solve, trace: TraceMethod | None) -> TransformResult:
        """Return x at the data, log |det dx/dz| [B], and the statistics of each solve."""

    def path(self, z: Tensor, times: Sequence[float], solve: Solve) -> tuple[Tensor, SolveStats]:
        """Return the states [T, B, *shape] between z and the data, at T increasing times in [0, duration]."""


class Chain(nn.Module):
    """A composition of transforms, in the order from the data to the base."""

    def __init__(self, transforms: Iterable[nn.Module]) -> None:
        super().__init__()
        self.transforms: Any = nn.ModuleList(transforms)

    @property
    def duration(self) -> float:
        """The sum of the durations of all transforms."""
        return sum(transform.duration for transform in self.transforms)

    def to_base(self, x: Tensor, solve: Solve = ode.solve, trace: TraceMethod | None = None) -> TransformResult:
        """See ``Transform``. trace: None for the model's setting."""
        return _apply_in_order([transform.to_base for transform in self.transforms], x, solve, trace)

    def from_base(self, z: Tensor, solve: Solve = ode.solve, trace: TraceMethod | None = None) -> TransformResult:
        """See ``Transform``. trace: None for the model's setting."""
        return _apply_in_order([transform.from_base for transform in reversed(self.transforms)], z, solve, trace)

    def path(self, z: Tensor, times: Sequence[float], solve: Solve = ode.solve) -> tuple[Tensor, SolveStats]:
        """See ``Transform``; solves no further than the last time."""
        frames, start = [], 0.0
        solves: SolveStats = ()
        for position, transform in enumerate(reversed(self.transforms), 1):
            duration, last = transform.duration, position == len(self.transforms)
            within = [t for t in times if last or t <= start + duration]
            times = times[len(within) :]
            local = [min(t - start, duration) for t in within]
            states, stats = transform.path(z, [*local, duration] if times else local, solve)
            frames.append(states[: len(local)])
            solves, start, z = solves + stats, start + duration, states[-1]
            if not times:
                break
        return torch.cat(frames), solves


def _apply_in_order(maps: list[Callable[..., TransformResult]], x: Tensor, *options: object) -> tuple:
    log_dets = []
    solves: SolveStats = ()
    for transform in maps:
        x, log_det, stats = transform(x, *options)
        log_dets.append(log_det)
        solves += stats
    return x, sum(log_dets[1:], log_dets[0]), solves


class Flow(Chain):
    """A density on R^shape: a chain of transforms from the data to N(0, base_variance I).

    shape: the shape of one sample. transforms: the transforms, in the order from the data to the base.
    """

    def __init__(self, shape: tuple[int, ...], transforms: Iterable[nn.Module], base_variance: float) -> None:
        super().__init__(transforms)
        self.shape = tuple(shape)
        self.base_variance = base_variance

    @property
    def end_time(self) -> float:
        """The time at which the state is the data; if this time is trained, its current value."""
        return self.duration

    def log_prob(
        self, x: Tensor, solve: Solve = ode.solve, trace: TraceMethod | None = None
    ) -> tuple[Tensor, SolveStats]:
        """Return log p(x) [B] in nats, for samples x [B, *shape], and the statistics of each solve."""
        z, log_det, solves = self.to_base(x, solve, trace)
        return self.base_log_prob(z) + log_det, solves

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Return log N(z; 0, base_variance I) [B], for z [B, *shape]."""
        z = z.flatten(1)
        constant = 0.5 * z.shape[1] * math.log(2 * math.pi * self.base_variance)
        return -0.5 / self.base_variance * z.square().sum(1) - constant

    def base_sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw samples [num, *shape] of the base, with the parameters' dtype and device.

        generator: may be on any device.
        """
        like = next(self.parameters())
        device = like.device if generator is None else generator.device
        z = torch.randn(num, *self.shape, dtype=like.dtype, device=device, generator=generator)
        return z.to(like.device) * math.sqrt(self.base_variance)

    def sample(
        self, num: int, solve: Solve = ode.solve, generator: torch.Generator | None = None
    ) -> tuple[Tensor, SolveStats]:
        """Draw samples [num, *shape] of the model, without their density; also returns the statistics of each solve."""
        frames, solves = self.path(self.base_sample(num, generator), [self.end_time], solve)
        return frames[-1], solves


class ODEFlow(Flow):
    """A flow that contains ODEs. If all its transforms are ODEs, flow matching can train it."""

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """Return dx/dt at x [B, *shape] and t, scalar or [B]: the field of the block whose time interval contains t.

        Raises UsageError for a flow with transforms that are not ODEs.
        """
        if not all(isinstance(block, ODEBlock) for block in self.transforms):
            raise UsageError(
                "flow matching needs a flow whose transforms are all ODEs: cnf, or ffjord with model.scales=1 and "
                "model.logit=null"
            )
        velocity, start = None, 0.0
        for block in reversed(self.transforms):
            value = block.field(t - start, x)
            later = (t >= start).reshape(-1, *[1] * (x.dim() - 1))
            velocity = value if velocity is None else torch.where(later, value, velocity)
            start += block.duration
        assert velocity is not None
        return velocity


class ODEBlock(nn.Module):
    """The solution of dz/dt = field(t, z) from 0 to end_time as a transform.

    log |det dx/dz| is the integral of the trace of df/dz (Chen et al. 2018, Theorem 1).

    shape: the shape of z without its batch dimension. train_time: whether the end time is a parameter; it stays
    positive. trace: exact, or Hutchinson's estimate eps^T df/dz eps (Grathwohl et al. 2019). noise: the distribution of
    eps, with covariance I. eps is drawn once for each solve, so that all evaluations in a solve are of one function.

    Raises UsageError if an exact trace would cost too much, and for a field with random layers.
    """

    def __init__(
        self,
        field: nn.Module,
        shape: tuple[int, ...],
        end_time: float,
        train_time: bool = False,
        trace: TraceMethod = "exact",
        noise: NoiseDistribution = "rademacher",
    ) -> None:
        super().__init__()
        if layers := find_layers(field)[0]:
            raise UsageError(
                f"the field's layer {layers[0]} changes at every evaluation, but a field must stay the same within a "
                "solve; remove the layer, or use GroupNorm or LayerNorm"
            )
        self.field = field
        self.shape = tuple(shape)
        self.trace: TraceMethod = trace
        self.noise: NoiseDistribution = noise
        # Created here, so that each is compiled only once. In a dict, so that the field is registered as a submodule
        # only once.
        self._augmented_fields = {
            "exact": AugmentedField(field, [exact_trace]),
            "hutchinson": AugmentedField(field, [hutchinson_trace]),
        }
        # The logarithm, so that no optimiser step makes the time zero or negative.
        self.log_time = nn.Parameter(torch.tensor(math.log(end_time))) if train_time else None
        self._end_time = end_time
        self._check_trace_cost(trace)

    @property
    def duration(self) -> float:
        """The current end time."""
        return self._end_time if self.log_time is None else self.log_time.exp().item()

    def to_base(self, x: Tensor, solve: Solve, trace: TraceMethod | None = None) -> TransformResult:
        """See ``Transform``."""
        return self._solve(x, (1.0, 0.0), solve, trace or self.trace)

    def from_base(self, z: Tensor, solve: Solve, trace: TraceMethod | None = None) -> TransformResult:
        """See ``Transform``."""
        return self._solve(z, (0.0, 1.0), solve, trace or self.trace)

    def path(self, z: Tensor, times: Sequence[float], solve: Solve) -> tuple[Tensor, SolveStats]:
        """See ``Transform``."""
        solve_times = sorted({0.0, *times})
        if len(solve_times) == 1:
            return z.expand(len(times), *z.shape), ()
        solution = solve(self.field, z, solve_times)
        return solution.y[[solve_times.index(t) for t in times]], (solution.stats,)

    def _solve(self, start: Tensor, fractions: tuple[float, float], solve: Solve, trace: TraceMethod) -> tuple:
        self._check_trace_cost(trace)
        args = () if trace == "exact" else (Rows(draw_noise(self.noise, start)),)
        state = (start, *zero_integrals(start, 1))
        solution = solve(self._augmented_fields[trace], state, self._times(fractions), args=args)
        end, log_det = solution.y
        return end[-1], log_det[-1], (solution.stats,)

    def _times(self, fractions: tuple[float, float]) -> Tensor | list[float]:
        """These fractions of the end time; they have a graph if the end time is trained."""
        if self.log_time is None:
            return [fraction * self._end_time for fraction in fractions]
        end_time = self.log_time.exp()
        return torch.stack([fraction * end_time for fraction in fractions])

    def _check_trace_cost(self, trace: TraceMethod) -> None:
        size = math.prod(self.shape)
        if trace == "exact" and size > EXACT_TRACE_LIMIT and len(self.shape) > 1:
            raise UsageError(
                f"model.trace=exact: for images of {size} numbers it costs {size} vector-Jacobian products at every "
                "evaluation; model.trace=hutchinson estimates it with one"
            )


def draw_noise(noise: NoiseDistribution, like: Tensor) -> Tensor:
    """Draw independent numbers of mean 0 and variance 1, with the shape, dtype and device of ``like``.

    They come from torch's global random state and are the same in every dtype, so that float32 and float64 can be
    compared.
    """
    if noise == "gaussian":
        return torch.randn_like(like, dtype=torch.float32).to(like.dtype)
    return torch.empty_like(like).bernoulli_(0.5).mul_(2).sub_(1)


def vector_size(shape: tuple[int, ...], model: str) -> int:
    """Return D for samples of shape (D,). Raises UsageError for images. model: the model's name, for the message."""
    if len(shape) != 1:
        raise UsageError(f"model={model} is for vectors, but the data are images; use model=ffjord for images")
    return shape[0]
