"""odebench: measure the cost and the results of neural ODEs, by model, solver, tolerance and gradient mode.

Public names are looked up on first use, so that ``import odebench`` loads neither torch, Hydra nor pandas.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "train": "odebench.training.run",
    "load_run": "odebench.training.trained_run",
    "load_runs": "odebench.reporting.table",
    "solve": "odebench.ode",
    "odeint": "odebench.ode",
    "odeint_adjoint": "odebench.ode",
    "odeint_event": "odebench.ode",
    "Solution": "odebench.ode",
    "SolveError": "odebench.ode",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'odebench' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
