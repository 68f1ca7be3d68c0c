"""From a series to what is believed of its latent state at time 0."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odebench import ode
from odebench.models.series.cells import ODECell
from odebench.models.series.fields import mlp
from odebench.models.series.forecast import Posterior
from odebench.models.series.reading import Counted, Observed, Solve, observed_backwards, read


class RecurrentEncoder(nn.Module):
    """q(z0 | x) by a plain recurrent network that reads a series backwards (Chen et al. 2018, section 5).

    It reads each observation's values, their mask, and the time to the observation before it, or to 0.

    kind: tanh or gru. width: of its hidden state. value_unit, gap_unit: in which it reads values and gaps.
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

    def forward(self, inputs: Observed, solve: Solve) -> tuple[Posterior, tuple[ode.Stats, ...]]:
        """The posterior [B, latent_dim]; nothing is solved."""
        grid = observed_backwards(inputs)
        # A series without any observation is read as one point with none.
        last = (grid.seen.sum(1) - 1).clamp(min=0)
        following = F.pad(grid.times[:, 1:], (0, 1)).scatter_(1, last.unsqueeze(1), 0)
        gaps = (following - grid.times).unsqueeze(-1) / self.gap_unit
        read = torch.cat((grid.values / self.value_unit, grid.mask, gaps), -1)
        return posterior(self.head(last_hidden(self.recurrent, read, last))), ()


def last_hidden(recurrent: nn.RNN | nn.GRU, inputs: Tensor, last: Tensor) -> Tensor:
    """The hidden state [B, H] of each of the inputs [B, K, I] after its number ``last`` [B].

    On CPUs a network of tanh units is run here, with the batch last: with its gradient in half the time of torch's.
    """
    rows = torch.arange(len(inputs), device=inputs.device)
    if isinstance(recurrent, nn.GRU) or inputs.device.type != "cpu":
        return recurrent(inputs)[0][rows, last]
    own, carried, *biases = recurrent.parameters()
    bias = sum(biases[1:], biases[0]).unsqueeze(1)
    first, *others = inputs.permute(1, 2, 0).contiguous().unbind()
    hiddens = [torch.tanh(torch.addmm(bias, own, first))]
    for x in others:
        hiddens.append(torch.tanh(torch.addmm(torch.addmm(bias, own, x), carried, hiddens[-1])))
    if bool((last == len(others)).all()):
        return hiddens[-1].t()
    return torch.stack(hiddens)[last, :, rows]


class ODERNNEncoder(nn.Module):
    """q(z0 | x) by an ODE-RNN that reads a series backwards, down to time 0 (Rubanova et al. 2019, section 3.2).

    cell: its hidden state is mapped to the parameters of q by a network with one hidden layer of head_units.
    """

    def __init__(self, cell: ODECell, latent_dim: int, head_units: int) -> None:
        super().__init__()
        self.cell = cell
        self.head = mlp(cell.width, 2 * latent_dim, head_units, 1, "tanh")

    def forward(self, inputs: Observed, solve: Solve) -> tuple[Posterior, tuple[ode.Stats, ...]]:
        """The posterior [B, latent_dim] and the statistics of the solves."""
        counted = Counted(solve)
        grid = observed_backwards(inputs, self.cell.longest_gap, to_start=True)
        reading = read(self.cell, grid, self.cell.start(grid.values[:, 0]), grid.times[:, 0], counted)
        return posterior(self.head(reading.end[0])), counted.stats


def posterior(parameters: Tensor) -> Posterior:
    """From its mean and what softplus makes its standard deviation, side by side [B, 2 L]."""
    mean, spread = parameters.chunk(2, dim=1)
    return Posterior(mean, F.softplus(spread))


def samples(of: Posterior, noise: Tensor | None) -> Tensor:
    """[S, B, latent_dim] from standard normal noise of that shape; None: its mean alone, S = 1."""
    return of.mean.unsqueeze(0) if noise is None else of.mean + of.std * noise
