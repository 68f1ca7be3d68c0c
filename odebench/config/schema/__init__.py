"""The settings of each choice: one dataclass for each model, solver, schedule, ..., with types and ranges.

They are frozen and have no defaults, which are in the YAML file of the same choice. The dicts map a choice's name to
its dataclass. Rules about several settings together are in odebench/config/validation.py.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from odebench.config.schema.data import DATA, ImageDataSettings
from odebench.config.schema.losses import DYNAMICS, LOSSES, DynamicsSettings
from odebench.config.schema.models import MODELS, MLPSettings, ODENetSettings, ResNetSettings
from odebench.config.schema.solver import (
    GRADIENTS,
    NO_SOLVER,
    AdjointGradientSettings,
    CheckpointGradientSettings,
    GradientSettings,
    SolverSettings,
)
from odebench.config.schema.training import (
    OPTIM,
    SCHEDULE,
    AdamSettings,
    ConstantSettings,
    CosineSettings,
    ExponentialSettings,
    MultiStepSettings,
    OneCycleSettings,
    RMSpropSettings,
    SGDSettings,
    TrainerSettings,
)

__all__ = [
    "DATA",
    "DYNAMICS",
    "GRADIENTS",
    "LOSSES",
    "MODELS",
    "NO_SOLVER",
    "OPTIM",
    "SCHEDULE",
    "AdamSettings",
    "AdjointGradientSettings",
    "CheckpointGradientSettings",
    "Choice",
    "ConstantSettings",
    "CosineSettings",
    "DynamicsSettings",
    "ExponentialSettings",
    "GradientSettings",
    "ImageDataSettings",
    "MLPSettings",
    "MultiStepSettings",
    "ODENetSettings",
    "OneCycleSettings",
    "PluginSettings",
    "RMSpropSettings",
    "ResNetSettings",
    "SGDSettings",
    "SolverSettings",
    "TrainerSettings",
]


class Choice(Protocol):
    """The settings of a chosen option, of any group."""

    @property
    def name(self) -> str:
        """The option's name."""


@dataclass(frozen=True)
class PluginSettings:
    """The settings of a plugin's model or data set, checked against its signature."""

    name: str
    options: dict[str, Any]
