"""What the density models share: a chain of invertible transforms from data to a Gaussian, an ODE as one of them.

Throughout, the base stands at time 0 and the data at the end time.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from odebench import ode
from odebench.errors import UsageError
from odebench.models.augmented_state import Carried, exact_trace, hutchinson_trace, zeros
from odebench.ode import Rows
from odebench.ode.problem import layers_in_training_mode

Solve = Callable[..., ode.Solution]
Solves = tuple[ode.Stats, ...]
Trace = Literal["exact", "hutchinson"]
Noise = Literal["rademacher", "gaussian"]

# An exact trace of a field without closed form is one vector-Jacobian product a dimension, at every evaluation.
EXACT_TRACE_LIMIT = 64


class Transform(Protocol):
    """An invertible map between data and base, both [B, *shape]; a module."""

    @property
    def duration(self) -> float:
        """The part of the flow's time that it takes."""

    def to_base(self, x: Tensor, solve: Solve, trace: Trace | None) -> tuple[Tensor, Tensor, Solves]:
        """z, log |det dz/dx| [B], and the statistics of each solve."""

    def from_base(self, z: Tensor, solve: Solve, trace: Trace | None) -> tuple[Tensor, Tensor, Solves]:
        """x, log |det dx/dz| [B], and the statistics of each solve."""

    def path(self, z: Tensor, times: Sequence[float], solve: Solve) -> tuple[Tensor, Solves]:
        """The way of z to the data [T, B, *shape] at T increasing times of [0, duration]."""


class Chain(nn.Module):
    """Transforms one after the other, the data's first."""

    def __init__(self, transforms: Iterable[nn.Module]) -> None:
        super().__init__()
        self.transforms: Any = nn.ModuleList(transforms)

    @property
    def duration(self) -> float:
        """Of all transforms together."""
        return sum(transform.duration for transform in self.transforms)

    def to_base(self, x: Tensor, solve: Solve = ode.solve, trace: Trace | None = None) -> tuple[Tensor, Tensor, Solves]:
        """See ``Transform``. trace: in place of the model's own choice."""
        return _through([transform.to_base for transform in self.transforms], x, solve, trace)

    def from_base(
        self, z: Tensor, solve: Solve = ode.solve, trace: Trace | None = None
    ) -> tuple[Tensor, Tensor, Solves]:
        """See ``Transform``. trace: in place of the model's own choice."""
        return _through([transform.from_base for transform in reversed(self.transforms)], z, solve, trace)

    def path(self, z: Tensor, times: Sequence[float], solve: Solve = ode.solve) -> tuple[Tensor, Solves]:
        """See ``Transform``; goes no further than the last time."""
        frames, start = [], 0.0
        solves: Solves = ()
        for position, transform in enumerate(reversed(self.transforms), 1):
            duration, last = transform.duration, position == len(self.transforms)
            here = [t for t in times if last or t <= start + duration]
            times = times[len(here) :]
            local = [min(t - start, duration) for t in here]
            states, stats = transform.path(z, [*local, duration] if times else local, solve)
            frames.append(states[: len(local)])
            solves, start, z = solves + stats, start + duration, states[-1]
            if not times:
                break
        return torch.cat(frames), solves


def _through(maps: list[Callable[..., tuple[Tensor, Tensor, Solves]]], x: Tensor, *how: object) -> tuple:
    log_dets = []
    solves: Solves = ()
    for transform in maps:
        x, log_det, stats = transform(x, *how)
        log_dets.append(log_det)
        solves += stats
    return x, sum(log_dets[1:], log_dets[0]), solves


class Flow(Chain):
    """A density on R^shape: transforms from data to N(0, base_variance I).

    shape: of one sample. transforms: the data's first.
    """

    def __init__(self, shape: tuple[int, ...], transforms: Iterable[nn.Module], base_variance: float) -> None:
        super().__init__(transforms)
        self.shape = tuple(shape)
        self.base_variance = base_variance

    @property
    def end_time(self) -> float:
        """The time of the data, where it is trained as it is now."""
        return self.duration

    def log_prob(self, x: Tensor, solve: Solve = ode.solve, trace: Trace | None = None) -> tuple[Tensor, Solves]:
        """log p(x) [B] in nats of samples x [B, *shape], and the statistics of each solve."""
        z, log_det, solves = self.to_base(x, solve, trace)
        return self.base_log_prob(z) + log_det, solves

    def base_log_prob(self, z: Tensor) -> Tensor:
        """log N(z; 0, base_variance I) [B] of z [B, *shape]."""
        z = z.flatten(1)
        constant = 0.5 * z.shape[1] * math.log(2 * math.pi * self.base_variance)
        return -0.5 / self.base_variance * z.square().sum(1) - constant

    def base_sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """[num, *shape] of the base, in the parameters' dtype and on their device; a generator may be on the host."""
        like = next(self.parameters())
        device = like.device if generator is None else generator.device
        z = torch.randn(num, *self.shape, dtype=like.dtype, device=device, generator=generator)
        return z.to(like.device) * math.sqrt(self.base_variance)

    def sample(
        self, num: int, solve: Solve = ode.solve, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Solves]:
        """[num, *shape] of the model, without its density, and the statistics of each solve."""
        frames, solves = self.path(self.base_sample(num, generator), [self.end_time], solve)
        return frames[-1], solves


class ODEFlow(Flow):
    """A flow of ODEs, which has a field and can be trained by flow matching."""

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """dx/dt of x [B, *shape] at times t, scalar or [B]: the field of the block whose time it is.

        Raises UsageError for a flow that is not ODEs alone, all of x's shape.
        """
        if not all(isinstance(block, ODEBlock) for block in self.transforms):
            raise UsageError(
                "only a flow of ODEs alone has a velocity for flow matching: cnf, and ffjord with model.scales=1 and "
                "model.logit=null"
            )
        velocity, start = None, 0.0
        for block in reversed(self.transforms):
            own = block.field(t - start, x)
            later = (t >= start).reshape(-1, *[1] * (x.dim() - 1))
            velocity = own if velocity is None else torch.where(later, own, velocity)
            start += block.duration
        assert velocity is not None
        return velocity


class ODEBlock(nn.Module):
    """The solution of dz/dt = field(t, z) from 0 to end_time as a transform: log |det dx/dz| is the integral of the
    trace of df/dz (Chen et al. 2018, Theorem 1).

    shape: of z without its batch. train_time: whether the end time is a parameter; it stays positive.
    trace: exact, or Hutchinson's estimate eps^T df/dz eps (Grathwohl et al. 2019), whose noise, of a distribution
    with covariance I, is drawn once a solve: all its evaluations see one function.

    Raises UsageError where an exact trace would cost too much, and for a field that is another at every evaluation.
    """

    def __init__(
        self,
        field: nn.Module,
        shape: tuple[int, ...],
        end_time: float,
        train_time: bool = False,
        trace: Trace = "exact",
        noise: Noise = "rademacher",
    ) -> None:
        super().__init__()
        if layers := layers_in_training_mode(field):
            raise UsageError(
                f"the field's layer {layers[0]} changes at every evaluation, and within a solve all must be of one "
                "field; take it out, or use GroupNorm or LayerNorm"
            )
        self.field = field
        self.shape = tuple(shape)
        self.trace: Trace = trace
        self.noise: Noise = noise
        # Made once, so that each is compiled once; in a dict, so that the field is a submodule once.
        self._carried = {
            "exact": Carried(field, [exact_trace]),
            "hutchinson": Carried(field, [hutchinson_trace]),
        }
        # Its logarithm, so that no step of an optimiser makes it zero or negative.
        self.log_time = nn.Parameter(torch.tensor(math.log(end_time))) if train_time else None
        self._end_time = end_time
        self._refuse_costly(trace)

    @property
    def duration(self) -> float:
        """The end time, as it is now."""
        return self._end_time if self.log_time is None else self.log_time.exp().item()

    def to_base(self, x: Tensor, solve: Solve, trace: Trace | None = None) -> tuple[Tensor, Tensor, Solves]:
        """See ``Transform``."""
        return self._solve(x, (1.0, 0.0), solve, trace or self.trace)

    def from_base(self, z: Tensor, solve: Solve, trace: Trace | None = None) -> tuple[Tensor, Tensor, Solves]:
        """See ``Transform``."""
        return self._solve(z, (0.0, 1.0), solve, trace or self.trace)

    def path(self, z: Tensor, times: Sequence[float], solve: Solve) -> tuple[Tensor, Solves]:
        """See ``Transform``."""
        stops = sorted({0.0, *times})
        if len(stops) == 1:
            return z.expand(len(times), *z.shape), ()
        solution = solve(self.field, z, stops)
        return solution.y[[stops.index(t) for t in times]], (solution.stats,)

    def _solve(self, start: Tensor, shares: tuple[float, float], solve: Solve, trace: Trace) -> tuple:
        self._refuse_costly(trace)
        args = () if trace == "exact" else (Rows(draw_noise(self.noise, start)),)
        solution = solve(self._carried[trace], (start, *zeros(start, 1)), self._times(shares), args=args)
        end, log_det = solution.y
        return end[-1], log_det[-1], (solution.stats,)

    def _times(self, shares: tuple[float, float]) -> Tensor | list[float]:
        """These shares of the end time, with its graph where it is trained."""
        if self.log_time is None:
            return [share * self._end_time for share in shares]
        return self.log_time.exp() * self.log_time.new_tensor(shares)

    def _refuse_costly(self, trace: Trace) -> None:
        size = math.prod(self.shape)
        if trace == "exact" and size > EXACT_TRACE_LIMIT and len(self.shape) > 1:
            raise UsageError(
                f"model.trace=exact: for images of {size} numbers it costs {size} vector-Jacobian products at every "
                "evaluation; model.trace=hutchinson estimates it with one"
            )


def draw_noise(noise: Noise, like: Tensor) -> Tensor:
    """Independent numbers of mean 0 and variance 1, like a state, from torch's global random state; the same in every
    dtype, so that a model solved in float64 is the same model."""
    if noise == "gaussian":
        return torch.randn_like(like, dtype=torch.float32).to(like.dtype)
    return torch.empty_like(like).bernoulli_(0.5).mul_(2).sub_(1)


def vector_size(shape: tuple[int, ...], model: str) -> int:
    """D of data [D]. Raises UsageError for images, in the model's name."""
    if len(shape) != 1:
        raise UsageError(f"model={model} is for vectors, and the data are images; model=ffjord has a field for them")
    return shape[0]
