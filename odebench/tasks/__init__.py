"""A task combines a model, its data and its loss. The training loop uses only the interface ``Task``."""

from collections.abc import Callable

import torch

from odebench.config.settings import Settings
from odebench.tasks.classification import ClassificationTask
from odebench.tasks.density import DensityTask
from odebench.tasks.task import Loss, Task
from odebench.tasks.time_series import TimeSeriesTask

__all__ = ["Loss", "Task", "build_task"]


def build_task(settings: Settings, device: torch.device) -> Task:
    """Build the task that the settings choose: load its data, and initialise its model on the device."""
    tasks: dict[str, Callable[[Settings, torch.device], Task]] = {
        "classification": ClassificationTask,
        "density": DensityTask,
        "time_series": TimeSeriesTask,
    }
    return tasks[settings.task](settings, device)
