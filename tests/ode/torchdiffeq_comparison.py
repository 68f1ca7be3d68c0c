"""Shared by the tests of the drop-in functions: both libraries, a small field, and one that records callbacks."""

import pytest
import torch
from torch import nn

from odebench.ode import odeint, odeint_adjoint

torchdiffeq = pytest.importorskip("torchdiffeq")

LIBRARIES = {"torchdiffeq": (torchdiffeq.odeint, torchdiffeq.odeint_adjoint), "odebench": (odeint, odeint_adjoint)}
TIMES = torch.linspace(0, 1.5, 4, dtype=torch.float64)
Y0 = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-1.2, 0.1]], dtype=torch.float64)


class Field(nn.Module):
    """A small network of t and y that counts its evaluations; for tuples too."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
        with torch.no_grad():
            for parameter in self.layers.parameters():
                parameter.mul_(2)
        self.nfe = 0

    def forward(self, t, y):
        self.nfe += 1
        if isinstance(y, tuple):
            both = torch.cat([y[0], y[1].unsqueeze(1)], 1)
            rate = self.layers(torch.cat([both, t.expand(len(both), 1)], 1))
            return rate[:, :1], rate[:, 1]
        return self.layers(torch.cat([y, t.expand(*y.shape[:-1], 1)], -1))


def as_state(y, kind):
    return (y[:, :1], y[:, 1]) if kind == "tuple" else y


def flat(y):
    return torch.cat([part.reshape(len(part), -1) for part in y], 1) if isinstance(y, tuple) else y.flatten(1)


def run_both(call):
    """The results of ``call(odeint, odeint_adjoint)`` with torchdiffeq's functions and with odebench's."""
    return call(*LIBRARIES["torchdiffeq"]), call(*LIBRARIES["odebench"])


def largest(x):
    return x.detach().abs().max().item()


def gradients(integrate, field, y0, t, **how):
    y0 = y0.clone().requires_grad_()
    field.nfe = 0
    y = integrate(field, y0, t, **how)
    forward = field.nfe
    gradient = torch.autograd.grad((y[1:] ** 2).mean() + y[1].sin().sum(), [y0, *field.parameters()])
    return torch.cat([g.reshape(-1) for g in gradient]), forward, field.nfe - forward


class LoggingField(Field):
    """Records the calls of its callbacks.

    It does not depend on t: torchdiffeq's backward solve has an equation for the gradient of t, whose error limits
    its steps.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, t, y):
        return super().forward(torch.zeros_like(t), y)


def record_callback(name):
    def callback(self, t, y, dt):
        shape = tuple(part.shape for part in y) if isinstance(y, tuple) else y.shape
        assert t.dim() == dt.dim() == 0
        assert dt > 0
        self.calls.append((name, t.item(), shape, dt.item()))

    return callback


CALLBACKS = ["callback_step", "callback_accept_step", "callback_reject_step"]
for name in [*CALLBACKS, *(name + "_adjoint" for name in CALLBACKS)]:
    setattr(LoggingField, name, record_callback(name))
