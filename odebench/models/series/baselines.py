"""Predictions of series without a network, to compare models with. Only a noise or a bandwidth is trained."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from odebench import ode
from odebench.errors import UsageError
from odebench.models.series.forecast import Forecast
from odebench.models.series.recurrence import ObservedSeries, Solve

NUM_GRID_TIMES = 201
SMALLEST_RATE = 1e-2  # events per unit of time
SMALLEST_RELATIVE_RATE = 0.05


class ConstantBaseline(nn.Module):
    """Predicts constants; see ``odebench.models.series`` for how it is called.

    kind: "training_mean", the mean of each feature over the training series; "series_mean", the mean over the inputs of
    the series; "last_value", the last input before the predicted time. Where a series has no such input, the training
    mean is predicted. noise_std: initial standard deviation of the observations; it is trained.
    """

    latent_dim = 0
    classifier = None
    feature_means: Tensor

    def __init__(
        self, feature_means: Tensor, kind: Literal["training_mean", "series_mean", "last_value"], noise_std: float
    ) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("feature_means", feature_means)
        self.log_noise_std = nn.Parameter(torch.full_like(feature_means, math.log(noise_std)))

    @property
    def noise_std(self) -> Tensor:
        """Standard deviation of the observations [D]."""
        return self.log_noise_std.exp()

    def forward(
        self,
        inputs: ObservedSeries,
        times: Tensor,
        solve: Solve = ode.solve,
        requested: Tensor | None = None,
        noise: None = None,
    ) -> Forecast:
        """See ``odebench.models.series``."""
        values, mask = inputs.values, inputs.mask
        size = len(values), len(times), values.shape[2]
        predicted = self.feature_means.expand(size)
        if self.kind == "series_mean":
            count = mask.sum(1, keepdim=True)
            mean = values.where(mask, 0).sum(1, keepdim=True) / count.clamp(min=1)
            predicted = mean.where(count > 0, predicted[:, :1]).expand(size)
        elif self.kind == "last_value":
            columns = torch.arange(mask.shape[1], device=mask.device).unsqueeze(1)
            latest = torch.where(mask, columns, -1).cummax(1).values  # [B, T, D]: the last observed column so far
            latest = torch.cat((torch.full_like(latest[:, :1], -1), latest), 1)
            latest = latest[:, torch.searchsorted(inputs.times, times)]
            predicted = values.gather(1, latest.clamp(min=0)).where(latest >= 0, predicted)
        return Forecast(predicted.unsqueeze(0))


class EventSmoother(nn.Module):
    """Estimates the rate of events by a Gaussian kernel; see ``odebench.models.series`` for how it is called.

    observations: if False, the rate is the kernel estimate from the times of the events, corrected at both ends of the
    span (Diggle 1985). If True, the values of the events are readings of the relative rate: they are smoothed by local
    linear regression, and the rate is 1 plus the result, scaled to the number of events.

    An event does not count at its own time, so the trained bandwidth is the one that leave-one-out cross-validation
    chooses. bandwidth: its initial value, in units of time. noise_std: initial deviation of the readings. Raises
    UsageError for more than one kind of event.
    """

    latent_dim = 0
    classifier = None
    rates = True  # says that events are modelled

    def __init__(self, num_features: int, span: float, observations: bool, bandwidth: float, noise_std: float) -> None:
        super().__init__()
        if num_features != 1:
            line = f"needs one kind of event, the data has {num_features} channels; choose data=poisson_events"
            raise UsageError(f"model=event_smoothing: {line}", "model")
        self.span, self.observations = span, observations
        self.log_bandwidth = nn.Parameter(torch.tensor(math.log(bandwidth)))
        self.log_noise_std = nn.Parameter(torch.tensor([math.log(noise_std)]), requires_grad=observations)

    @property
    def noise_std(self) -> Tensor | None:
        """Standard deviation of the readings [1]; None if only the times are modelled."""
        return self.log_noise_std.exp() if self.observations else None

    def forward(
        self,
        inputs: ObservedSeries,
        times: Tensor,
        solve: Solve = ode.solve,
        requested: Tensor | None = None,
        noise: None = None,
    ) -> Forecast:
        """See ``odebench.models.series``. The series have one kind of event."""
        size = 1, len(inputs.values), len(times), 1
        readings, log_rates = times.new_zeros(size), times.new_zeros(size)
        expected = []
        grid = torch.linspace(0, self.span, NUM_GRID_TIMES, dtype=times.dtype, device=times.device)
        for row, mask in enumerate(inputs.mask[:, :, 0]):
            events, values = inputs.times[mask], inputs.values[row, mask, 0]
            columns = slice(None) if requested is None else requested[row].nonzero().squeeze(1)
            smoothed, rate = self._estimate(times[columns], events, values, leave_out=True)
            total = torch.trapezoid(self._estimate(grid, events, values, leave_out=False)[1], grid)
            if self.observations:  # the rate is relative until now
                rate = rate * len(events) / total
                total = torch.full_like(total, len(events))
            readings[0, row, columns, 0] = smoothed
            log_rates[0, row, columns, 0] = rate.clamp(min=SMALLEST_RATE).log()
            expected.append(total)
        values_or_none = readings if self.observations else None
        return Forecast(values_or_none, log_rates=log_rates, expected_events=torch.stack(expected).unsqueeze(0))

    def _estimate(self, at: Tensor, events: Tensor, values: Tensor, leave_out: bool) -> tuple[Tensor, Tensor]:
        """Smooth one series: returns the reading (0 without readings) and the rate at times ``at`` [R].

        leave_out: an event does not count at its own time.
        """
        bandwidth = self.log_bandwidth.exp()
        gaps = (events - at.unsqueeze(1)) / bandwidth  # [R, events]
        kernel = torch.exp(-0.5 * gaps.square())
        if leave_out:
            kernel = kernel * (gaps != 0)
        if not self.observations:
            inside = 0.5 * sum(torch.erf(side / (bandwidth * math.sqrt(2))) for side in (at, self.span - at))
            return torch.zeros_like(at), kernel.sum(1) / (bandwidth * math.sqrt(2 * math.pi) * inside)
        sums = [(kernel * gaps**power).sum(1, keepdim=True) for power in range(3)]
        weights = kernel * (sums[2] - sums[1] * gaps)
        smoothed = (weights * values).sum(1) / (weights.sum(1) + torch.finfo(at.dtype).eps)
        return smoothed, (1 + smoothed).clamp(min=SMALLEST_RELATIVE_RATE)
