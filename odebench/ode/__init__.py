"""Solving and differentiating ordinary differential equations in PyTorch.

The main function is ``solve(f, y0, t)``. It returns a ``Solution`` with the states, the statistics of the solve and a
status. This package imports torch, but no other package of odebench. The names below are imported on first use, so that
the tables of ``odebench.ode.methods`` can be read without torch.
"""

import importlib
from typing import Any

_PUBLIC = {
    "solve": "odebench.ode.solving",
    "odeint": "odebench.ode.torchdiffeq_api",
    "odeint_adjoint": "odebench.ode.torchdiffeq_api",
    "odeint_event": "odebench.ode.torchdiffeq_api",
    "OdeintError": "odebench.ode.torchdiffeq_api",
    "Solution": "odebench.ode.solution",
    "DenseOutput": "odebench.ode.dense",
    "Event": "odebench.ode.events",
    "RowStats": "odebench.ode.solution",
    "Rows": "odebench.ode.per_sample",
    "SolveError": "odebench.ode.solution",
    "Stats": "odebench.ode.solution",
    "Status": "odebench.ode.solution",
    "METHODS": "odebench.ode.methods",
    "Tableau": "odebench.ode.methods",
    "GRADIENTS": "odebench.ode.gradients",
    "Adjoint": "odebench.ode.gradients",
    "Backprop": "odebench.ode.gradients",
    "Checkpoint": "odebench.ode.gradients",
    "InterpolatedAdjoint": "odebench.ode.gradients",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'odebench.ode' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)
    return value
