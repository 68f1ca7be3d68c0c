"""Models as a user of torchdiffeq writes them, for ``compare_training_step.py``.

Each model has the weights of one of odebench's models, and the same loss. Fields count their evaluations in ``nfe``.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdiffeq import odeint, odeint_adjoint

from odebench.bench.fields import PublishedConvField
from odebench.data import to_float
from odebench.tasks.time_series import SeriesTrainingBatch

SOLVES = {"adjoint": odeint_adjoint, "backprop": odeint}


class TorchdiffeqModel:
    """Base class of a model: a loss around one solve of ``field`` by dopri5."""

    field: Any

    def __init__(self, model: Any, tol: float, gradient: str) -> None:
        self.model, self._solve, self._tol = model, SOLVES[gradient], tol

    def solve(self, y0: Any, times: Tensor) -> Any:
        """Return the states at the times."""
        return self._solve(self.field, y0, times, rtol=self._tol, atol=self._tol, method="dopri5")


class TorchdiffeqODENet(TorchdiffeqModel):
    """ODE-Net as published (Chen et al. 2018), with the time prepended as a channel."""

    def __init__(self, model: Any, tol: float, gradient: str) -> None:
        super().__init__(model, tol, gradient)
        self.field = TorchdiffeqConvField(model.field)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The cross-entropy of a batch of images and labels."""
        images, labels = batch
        y = self.solve(self.model.stem(to_float(images)), torch.tensor([0.0, 1.0]))[1]
        return F.cross_entropy(self.model.head(y), labels)


class TorchdiffeqConvField(PublishedConvField):
    """Two convolutions between group normalisations, with the time as an input channel."""

    def __init__(self, field: Any) -> None:
        super().__init__(field)
        self.nfe = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt."""
        self.nfe += 1
        return super().forward(t, y)


class TorchdiffeqCNF(TorchdiffeqModel):
    """The CNF of torchdiffeq's example; the trace takes one derivative per dimension."""

    def __init__(self, model: Any, tol: float, gradient: str) -> None:
        super().__init__(model, tol, gradient)
        self.field = TorchdiffeqGatedField(model.transforms[0].field)

    def loss(self, batch: Tensor) -> Tensor:
        """The negative log-likelihood of samples [B, D]."""
        times = torch.tensor([self.model.end_time, 0.0])
        z, trace = self.solve((batch, torch.zeros(len(batch), 1)), times)
        base = torch.distributions.Normal(0.0, math.sqrt(self.model.base_variance))
        return -(base.log_prob(z[-1]).sum(1) + trace[-1].squeeze(1)).mean()


class TorchdiffeqGatedField(nn.Module):
    """The field of Chen et al. 2018, section 4: a network computes the parameters of its hidden units from t."""

    def __init__(self, field: Any) -> None:
        super().__init__()
        self.hypernetwork, self.size, self.width = field.hypernetwork, field.size, field.width
        self.nfe = 0

    def forward(self, t: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """dz/dt and the trace of its Jacobian."""
        self.nfe += 1
        with torch.enable_grad():
            z = states[0].requires_grad_(True)
            block = self.size * self.width
            w, b, u, gate = self.hypernetwork(t.reshape(1, 1)).squeeze(0).split([block, self.width, block, self.width])
            w = w.view(self.size, self.width)
            u = u.view(self.size, self.width) * torch.sigmoid(gate)
            dz = torch.tanh(z @ w + b) @ u.t() / self.width
            parts = [torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(self.size)]
            trace = sum(parts)
        return dz, trace.unsqueeze(1)


class TorchdiffeqLatentODE(TorchdiffeqModel):
    """The latent ODE of torchdiffeq's example with odebench's encoder.

    The encoder is a recurrent network that reads values, mask and time gaps backwards.
    """

    def __init__(self, model: Any, tol: float, gradient: str) -> None:
        super().__init__(model, tol, gradient)
        self.field = TorchdiffeqLatentField(model.field)

    def loss(self, batch: SeriesTrainingBatch) -> Tensor:
        """The negative evidence lower bound, with one latent sample."""
        model, inputs = self.model, batch.inputs
        gaps = torch.diff(inputs.times, prepend=torch.zeros(1)).expand(len(inputs), -1).unsqueeze(-1)
        seen = torch.cat([inputs.values, inputs.mask, gaps], -1).flip(1)
        hidden, _ = model.encoder.recurrent(seen)
        mean, spread = model.encoder.head(hidden[:, -1]).chunk(2, dim=1)
        std = F.softplus(spread)
        z0 = mean + std * batch.noise[0]
        states = self.solve(z0, inputs.times).permute(1, 0, 2)
        predicted = model.decoder.net(states)
        density = torch.distributions.Normal(predicted, model.decoder.log_noise_std.exp())
        likelihood = (density.log_prob(inputs.values) * inputs.mask).sum((1, 2))
        posterior, prior = torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
        return (torch.distributions.kl_divergence(posterior, prior).sum(1) - likelihood).mean()


class TorchdiffeqLatentField(nn.Module):
    """A field that is a network of the state and does not depend on the time."""

    def __init__(self, field: Any) -> None:
        super().__init__()
        self.net = field.net
        self.nfe = 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        self.nfe += 1
        return self.net(z)
