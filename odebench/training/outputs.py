"""What a task's model says of a fixed batch, in the dtype of its parameters."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from odebench.tasks import Task
from odebench.tasks.classification import Classification
from odebench.tasks.density import Density
from odebench.tasks.time_series import TimeSeries


@torch.no_grad()
def outputs(task: Task, split: str, num: int) -> Tensor:
    """By the evaluation's solver, of the first `num` samples of a split: logits; log-likelihoods, or, where these have
    an estimated trace, the samples' images in the base; means of forecasts at the times to compare with, or rates where
    there are events alone. The same random numbers each time."""
    model: Any = task.model.eval()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        if isinstance(task, Classification):
            return task._logits(model, task._splits[split].images[:num], task._eval_solve)[0]
        if isinstance(task, Density):
            x = next(task._batches(split))[:num].to(next(model.parameters()).dtype)
            solved = model.log_prob if task._trace else model.to_base
            return solved(x, task._eval_solve, task._trace)[0]
        assert isinstance(task, TimeSeries)
        series = task._splits[split]
        indices = torch.arange(min(num, len(series)), device=series.ids.device)
        targets = series.targets(indices)
        observed = targets.mask.any(-1)
        forecast = task._forecast(model, series, indices, targets.times, observed)
        if forecast.values is not None:
            return forecast.values.mean(0)[observed]
        assert forecast.log_rates is not None
        return forecast.log_rates.exp().mean(0)[observed]


def in_double(task: Task) -> None:
    """Turn a task's model into float64, and what it is called with."""
    task.model.double().register_forward_pre_hook(lambda model, given: cast(given, torch.float64))


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in that dtype, also inside tuples and dataclasses; all else as it is."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(cast(item, dtype) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{name: cast(item, dtype) for name, item in vars(value).items()})
    return value
