"""Recurrent cells for irregular times. See ``odebench.models.series.reading.Cell``.

Each reads values [B, D] with their mask. H is the width of the hidden state.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from odebench import ode
from odebench.models.series.fields import mlp
from odebench.models.series.reading import ROUNDING, Solve, State

RECURRENT: dict[str, type[nn.RNNCell] | type[nn.GRUCell]] = {"tanh": nn.RNNCell, "gru": nn.GRUCell}


class GapCell(nn.Module):
    """A plain recurrent network, with the time to the next observation among its inputs (Chen et al. 2018).

    The state is the one before the last observation, and that observation: it is read only when the time to the next
    one is known.

    kind: tanh or gru. time_gap: whether the time is an input at all. value_unit, gap_unit: in which values and time are
    read.
    """

    flows = False
    longest_gap: float | None = None

    def __init__(
        self,
        num_features: int,
        width: int,
        kind: str,
        time_gap: bool,
        value_unit: float = 1.0,
        gap_unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.time_gap, self.value_unit, self.gap_unit = time_gap, value_unit, gap_unit
        self.recurrent = RECURRENT[kind](2 * num_features + time_gap, width)

    def start(self, like: Tensor) -> State:
        """Nothing seen."""
        return self.start_from(like.new_zeros(len(like), self.recurrent.hidden_size), like)

    def start_from(self, hidden: Tensor, like: Tensor) -> State:
        """Nothing seen, from a hidden state [B, H]."""
        return hidden, torch.zeros_like(like), torch.zeros_like(like)

    def advance(self, state: State, gap: Tensor, solve: Solve) -> State:
        """Read the last observation."""
        return self._read(state, gap), *state[1:]

    def update(self, state: State, values: Tensor, mask: Tensor) -> State:
        """Keep the observation for when it is read."""
        return state[0], values, mask.to(values.dtype)

    def summary(self, state: State) -> Tensor:
        """The last observation read, as if the next came at once."""
        return self._read(state, state[1].new_zeros(len(state[1])))

    def _read(self, state: State, gap: Tensor) -> Tensor:
        hidden, values, mask = state
        inputs = [values / self.value_unit, mask]
        if self.time_gap:
            inputs.append(gap.unsqueeze(1) / self.gap_unit)
        return self.recurrent(torch.cat(inputs, 1), hidden)


class Decay(nn.Module):
    """exp(-max(0, W gap + b)), a factor in (0, 1] (Che et al. 2018).

    num_gaps: W is [width, num_gaps]; None: a diagonal.
    """

    def __init__(self, width: int, num_gaps: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, num_gaps or 1))
        self.bias = nn.Parameter(torch.zeros(width))
        # Positive: where the exponent is negative nothing is learnt.
        nn.init.uniform_(self.weight, 0, 1 / math.sqrt(num_gaps or 1))
        self._diagonal = num_gaps is None

    def forward(self, gap: Tensor) -> Tensor:
        """gap: [B, width] or [B, 1] where W is diagonal, else [B, num_gaps]; the factors [B, width]."""
        exponent = gap * self.weight.squeeze(1) if self._diagonal else gap @ self.weight.T
        return torch.exp(-torch.relu(exponent + self.bias))


class DecayCell(nn.Module):
    """A GRU whose hidden state decays between observations, each unit at a rate of its own (RNN-Decay)."""

    flows = False
    longest_gap: float | None = None

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.decay = Decay(width)
        self.recurrent = nn.GRUCell(2 * num_features, width)

    def start(self, like: Tensor) -> State:
        """Zeros."""
        return (like.new_zeros(len(like), self.recurrent.hidden_size),)

    def advance(self, state: State, gap: Tensor, solve: Solve) -> State:
        """Decay."""
        return (state[0] * self.decay(gap.unsqueeze(1)),)

    def update(self, state: State, values: Tensor, mask: Tensor) -> State:
        """A step of the GRU."""
        return (self.recurrent(torch.cat((values, mask), 1), state[0]),)

    def summary(self, state: State) -> Tensor:
        """The hidden state."""
        return state[0]


class GRUDCell(nn.Module):
    """GRU-D (Che et al. 2018): hidden state and last values decay, these towards their means.

    The state is the hidden one, the last value of each feature, and the time since it was seen, both [B, D].

    means: [D] of the features over the training data.
    """

    flows = False
    longest_gap: float | None = None
    means: Tensor

    def __init__(self, num_features: int, width: int, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.hidden_decay = Decay(width, num_features)
        self.value_decay = Decay(num_features)
        self.recurrent = nn.GRUCell(2 * num_features, width)

    def start(self, like: Tensor) -> State:
        """Zeros, and each feature at its mean."""
        return like.new_zeros(len(like), self.recurrent.hidden_size), self.means.expand_as(like), torch.zeros_like(like)

    def advance(self, state: State, gap: Tensor, solve: Solve) -> State:
        """Decay of the hidden state."""
        hidden, last, since = state
        since = since + gap.unsqueeze(1)
        return hidden * self.hidden_decay(since), last, since

    def update(self, state: State, values: Tensor, mask: Tensor) -> State:
        """A step of the GRU, on decayed values where none is observed."""
        hidden, last, since = state
        decay = self.value_decay(since)
        values = torch.where(mask, values, decay * last + (1 - decay) * self.means)
        hidden = self.recurrent(torch.cat((values, mask), 1), hidden)
        return hidden, torch.where(mask, values, last), since.masked_fill(mask, 0)

    def summary(self, state: State) -> Tensor:
        """The hidden state."""
        return state[0]


class GatedUpdate(nn.Module):
    """A GRU step whose gates and candidate are networks with one hidden layer (Rubanova et al. 2019).

    units: of each hidden layer.
    """

    def __init__(self, num_in: int, width: int, units: int) -> None:
        super().__init__()
        self.update_gate = mlp(num_in + width, width, units, 1, "tanh")
        self.reset_gate = mlp(num_in + width, width, units, 1, "tanh")
        self.candidate = mlp(num_in + width, width, units, 1, "tanh")

    def forward(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """inputs [B, num_in], hidden and the result [B, width]."""
        both = torch.cat((hidden, inputs), 1)
        update, reset = torch.sigmoid(self.update_gate(both)), torch.sigmoid(self.reset_gate(both))
        candidate = torch.tanh(self.candidate(torch.cat((hidden * reset, inputs), 1)))
        return torch.lerp(candidate, hidden, update)


class ODECell(nn.Module):
    """ODE-RNN (Rubanova et al. 2019, algorithm 1): an ODE between observations, a GRU step at each.

    The gaps of all series are solved at once, each scaled to [0, 1], dh/ds = gap f(h): as many solves as the longest
    series has observations, where the union of their times would need one for each of those. With fixed steps each
    solve is one, and as many as the longest series needs of them are made.

    field: dh/dt = f(t, h), not depending on t. gate_units: see ``GatedUpdate``.
    solver, step: fixed steps of this method of the engine, at most so long, backpropagated through. With None the given
        solve chooses: adaptive steps are the faster for stepping="per_sample" where gaps differ much.
    """

    flows = True

    def __init__(
        self, num_features: int, width: int, field: nn.Module, gate_units: int, solver: str | None, step: float
    ) -> None:
        super().__init__()
        self.width, self.solver, self.step = width, solver, step
        self.longest_gap = step if solver is not None else None
        self.field = field
        self.recurrent = GatedUpdate(2 * num_features, width, gate_units)

    def start(self, like: Tensor) -> State:
        """Zeros."""
        return (like.new_zeros(len(like), self.width),)

    def advance(self, state: State, gap: Tensor, solve: Solve) -> State:
        """Solve."""
        more: dict[str, Any] = {}
        if self.solver is not None:
            steps = max(math.ceil(gap.max().item() / self.step * (1 - ROUNDING)), 1)
            more = {
                "method": self.solver,
                "steps": steps,
                "step_size": None,
                "gradient": "backprop",
                "stepping": "shared",
                "compile": False,
            }
        gaps = ode.Rows(gap.unsqueeze(1))
        return (solve(self._scaled, state[0], (0.0, 1.0), args=(gaps,), first_step=None, **more).y[-1],)

    def update(self, state: State, values: Tensor, mask: Tensor) -> State:
        """A step of the GRU."""
        return (self.recurrent(torch.cat((values, mask), 1), state[0]),)

    def summary(self, state: State) -> Tensor:
        """The hidden state."""
        return state[0]

    def _scaled(self, t: Tensor, h: Tensor, gap: Tensor) -> Tensor:
        return gap * self.field(t, h)
