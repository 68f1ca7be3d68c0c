"""A problem and a fit for measured orders of convergence."""

import math

import torch


def pendulum(t, y):
    """Nonlinear and dependent on time, so that every order condition matters."""
    return torch.stack((y[1], -torch.sin(y[0]) + 0.5 * torch.cos(t)))


def convergence_order(steps, errors):
    """Least-squares slope of log error against log step size, for numbers of steps."""
    x = torch.tensor([-math.log(n) for n in steps])
    y = torch.tensor([math.log(e) for e in errors])
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())
