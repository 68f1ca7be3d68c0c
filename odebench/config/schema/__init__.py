"""The settings of each choice: one dataclass for each model, solver, schedule, ..., with types and ranges.

The dataclasses are frozen and have no defaults: defaults are in the YAML file of the same option. Rules about several
settings together are in odebench/config/validation.py.
"""

from dataclasses import dataclass
from typing import Any

from odebench.config.schema.base import Choice
from odebench.config.schema.data import DATA
from odebench.config.schema.losses import DYNAMICS, LOSSES
from odebench.config.schema.models import MODELS
from odebench.config.schema.solver import GRADIENTS
from odebench.config.schema.training import OPTIM, SCHEDULE, TrainerSettings

# The dataclass of each option, by group. All solvers share SolverSettings; their names are those of the methods.
CHOICES: dict[str, dict[str, type[Any]]] = {
    "model": MODELS,
    "loss": LOSSES,
    "dynamics": DYNAMICS,
    "gradient": GRADIENTS,
    "data": DATA,
    "optim": OPTIM,
    "schedule": SCHEDULE,
    "trainer": {"default": TrainerSettings},
}


@dataclass(frozen=True)
class PluginSettings(Choice):
    """The settings of a plugin's model or data set, checked against its signature."""

    options: dict[str, Any]
