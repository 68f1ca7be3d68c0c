"""The settings of each choice: one dataclass a model, solver, schedule, ..., with types and ranges.

Frozen, without defaults: those stand in the YAML file of the same choice. The dicts say which name is read by which
rules; what several settings say together is checked in odebench/settings.py.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from odebench.rules.data import DATA, Images
from odebench.rules.losses import DYNAMICS, LOSSES, Dynamics
from odebench.rules.models import MLP, MODELS, ODENet, ResNet
from odebench.rules.solving import GRADIENTS, NO_SOLVER, Adjoint, Checkpoint, Exact, Solver
from odebench.rules.training import (
    OPTIM,
    SCHEDULE,
    SGD,
    Adam,
    Constant,
    Cosine,
    Exponential,
    OneCycle,
    RMSprop,
    Steps,
    Trainer,
)

__all__ = [
    "DATA",
    "DYNAMICS",
    "GRADIENTS",
    "LOSSES",
    "MLP",
    "MODELS",
    "NO_SOLVER",
    "OPTIM",
    "SCHEDULE",
    "SGD",
    "Adam",
    "Adjoint",
    "Checkpoint",
    "Choice",
    "Constant",
    "Cosine",
    "Dynamics",
    "Exact",
    "Exponential",
    "Extension",
    "Images",
    "ODENet",
    "OneCycle",
    "RMSprop",
    "ResNet",
    "Solver",
    "Steps",
    "Trainer",
]


class Choice(Protocol):
    """The settings of a chosen option, of whatever group."""

    @property
    def name(self) -> str:
        """The option's name."""


@dataclass(frozen=True)
class Extension:
    """A model or data set of an extension: its options are checked against its signature."""

    name: str
    options: dict[str, Any]
