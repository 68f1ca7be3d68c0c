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

    kind: tanh or gru. width: of its hidden state.
    """

    def __init__(self, num_features: int, width: int, latent_dim: int, kind: Literal["tanh", "gru"]) -> None:
        super().__init__()
        self.recurrent = {"tanh": nn.RNN, "gru": nn.GRU}[kind](2 * num_features + 1, width, batch_first=True)
        self.head = nn.Linear(width, 2 * latent_dim)

    def forward(self, inputs: Observed, solve: Solve) -> tuple[Posterior, tuple[ode.Stats, ...]]:
        """The posterior [B, latent_dim]; nothing is solved."""
        grid = observed_backwards(inputs)
        # A series without any observation is read as one point with none.
        rows, last = torch.arange(len(grid.seen), device=grid.seen.device), (grid.seen.sum(1) - 1).clamp(min=0)
        following = F.pad(grid.times[:, 1:], (0, 1))
        following[rows, last] = 0
        hidden, _ = self.recurrent(torch.cat((grid.values, grid.mask, (following - grid.times).unsqueeze(-1)), -1))
        return posterior(self.head(hidden[rows, last])), ()


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
        grid = observed_backwards(inputs)
        reading = read(self.cell, grid, self.cell.start(grid.values[:, 0]), grid.times[:, 0], counted)
        state = self.cell.advance(reading.end, -reading.last, counted)
        return posterior(self.head(state[0])), counted.stats


def posterior(parameters: Tensor) -> Posterior:
    """From its mean and what softplus makes its standard deviation, side by side [B, 2 L]."""
    mean, spread = parameters.chunk(2, dim=1)
    return Posterior(mean, F.softplus(spread))


def samples(of: Posterior, noise: Tensor | None) -> Tensor:
    """[S, B, latent_dim] from standard normal noise of that shape; None: its mean alone, S = 1."""
    return of.mean.unsqueeze(0) if noise is None else of.mean + of.std * noise
