"""What the tests of the drop-in calls share: both libraries, a small field, and one that writes down its callbacks."""

import pytest
import torch
from torch import nn

from odebench.ode import odeint, odeint_adjoint

theirs = pytest.importorskip("torchdiffeq")

LIBRARIES = {"theirs": (theirs.odeint, theirs.odeint_adjoint), "ours": (odeint, odeint_adjoint)}
TIMES = torch.linspace(0, 1.5, 4, dtype=torch.float64)
Y0 = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-1.2, 0.1]], dtype=torch.float64)


class Field(nn.Module):
    """A small network of t and y that counts its evaluations; of a tuple where y0 is one."""

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


def pair(call):
    """What ``call(odeint, odeint_adjoint)`` gives with their functions and with ours."""
    return call(*LIBRARIES["theirs"]), call(*LIBRARIES["ours"])


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
    """Writes down what its callbacks are told.

    It is the same at all times: their backward solve has an equation for the gradient of t, whose error bounds its
    steps.
    """

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, t, y):
        return super().forward(torch.zeros_like(t), y)


def tell(name):
    def callback(self, t, y, dt):
        shape = tuple(part.shape for part in y) if isinstance(y, tuple) else y.shape
        assert t.dim() == dt.dim() == 0
        assert dt > 0
        self.told.append((name, t.item(), shape, dt.item()))

    return callback


NAMES = ["callback_step", "callback_accept_step", "callback_reject_step"]
for name in [*NAMES, *(name + "_adjoint" for name in NAMES)]:
    setattr(LoggingField, name, tell(name))
