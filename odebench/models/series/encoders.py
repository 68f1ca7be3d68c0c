"""Encoders: networks that map a series to the approximate posterior of its latent state at time 0."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odebench import ode
from odebench.models.series.cells import ODERNNCell
from odebench.models.series.fields import mlp
from odebench.models.series.forecast import Posterior
from odebench.models.series.recurrence import ObservedSeries, Solve, SolveRecorder, reversed_grid, run_cell


class RecurrentEncoder(nn.Module):
    """A plain recurrent network that runs backwards in time and gives q(z0 | x) (Chen et al. 2018, section 5).

    For each observation its inputs are the values, their mask, and the time back to the previous observation, or to 0.

    kind: tanh or gru. width: the width of the hidden state. value_unit, gap_unit: values and gaps are divided by these.
    """

    def __init__(
        self,
        num_features: int,
        width: int,
        latent_dim: int,
        kind: Literal["tanh", "gru"],
        value_unit: float = 1.0,
        gap_unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.value_unit, self.gap_unit = value_unit, gap_unit
        self.recurrent = {"tanh": nn.RNN, "gru": nn.GRU}[kind](2 * num_features + 1, width, batch_first=True)
        self.head = nn.Linear(width, 2 * latent_dim)

    def forward(self, inputs: ObservedSeries, solve: Solve) -> tuple[Posterior, tuple[ode.Stats, ...]]:
        """Return the posterior [B, latent_dim], and no statistics, as nothing is solved."""
        grid = reversed_grid(inputs)
        # A series without any observation becomes one point whose mask is False.
        last = (grid.is_observed.sum(1) - 1).clamp(min=0)
        next_times = F.pad(grid.times[:, 1:], (0, 1)).scatter_(1, last.unsqueeze(1), 0)
        gaps = (next_times - grid.times).unsqueeze(-1) / self.gap_unit
        points = torch.cat((grid.values / self.value_unit, grid.mask, gaps), -1)
        return to_posterior(self.head(last_hidden(self.recurrent, points, last))), ()


def last_hidden(recurrent: nn.RNN | nn.GRU, inputs: Tensor, last: Tensor) -> Tensor:
    """The hidden state [B, H] of each series after its input number ``last`` [B]; inputs: [B, K, I].

    For tanh units on CPUs this runs a loop with the batch dimension last. Forward and backward, the loop takes half the
    time of ``nn.RNN``.
    """
    rows = torch.arange(len(inputs), device=inputs.device)
    if isinstance(recurrent, nn.GRU) or inputs.device.type != "cpu":
        return recurrent(inputs)[0][rows, last]
    input_weight, hidden_weight, *biases = recurrent.parameters()
    bias = sum(biases[1:], biases[0]).unsqueeze(1)
    first, *others = (input_weight @ inputs.permute(1, 2, 0).contiguous() + bias).unbind()
    hidden_states = [torch.tanh(first)]
    for from_input in others:
        hidden_states.append(torch.tanh(torch.addmm(from_input, hidden_weight, hidden_states[-1])))
    if bool((last == len(others)).all()):
        return hidden_states[-1].t()
    return torch.stack(hidden_states)[last, :, rows]


class ODERNNEncoder(nn.Module):
    """An ODE-RNN that runs backwards in time to 0 and gives q(z0 | x) (Rubanova et al. 2019, section 3.2).

    A network with one hidden layer of head_units units maps the hidden state of the cell to the parameters of q.
    """

    def __init__(self, cell: ODERNNCell, latent_dim: int, head_units: int) -> None:
        super().__init__()
        self.cell = cell
        self.head = mlp(cell.width, 2 * latent_dim, head_units, 1, "tanh")

    def forward(self, inputs: ObservedSeries, solve: Solve) -> tuple[Posterior, tuple[ode.Stats, ...]]:
        """Return the posterior [B, latent_dim] and the statistics of the solves."""
        recorder = SolveRecorder(solve)
        grid = reversed_grid(inputs, self.cell.max_gap, to_start=True)
        output = run_cell(self.cell, grid, self.cell.initial_state(grid.values[:, 0]), grid.times[:, 0], recorder)
        return to_posterior(self.head(output.final_state[0])), recorder.stats


def to_posterior(parameters: Tensor) -> Posterior:
    """The posterior with mean m and standard deviation softplus(s); m and s are the two halves of [B, 2 L]."""
    mean, raw_std = parameters.chunk(2, dim=1)
    return Posterior(mean, F.softplus(raw_std))


def sample_posterior(q: Posterior, noise: Tensor | None) -> Tensor:
    """Make samples [S, B, latent_dim] from standard normal noise of that shape; None: only the mean, so S = 1."""
    return q.mean.unsqueeze(0) if noise is None else q.mean + q.std * noise
