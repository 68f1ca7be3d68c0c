"""Recurrent cells for irregular times. See ``odebench.models.series.recurrence.RecurrentCell``.

Each cell takes values [B, D] with their mask. H is the width of the hidden state.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from odebench import ode
from odebench.models.series.fields import mlp
from odebench.models.series.recurrence import GAP_RTOL, RecurrentCell, Solve, State

RECURRENT: dict[str, type[nn.RNNCell] | type[nn.GRUCell]] = {"tanh": nn.RNNCell, "gru": nn.GRUCell}


class TimeGapCell(RecurrentCell):
    """A plain recurrent network, with the time to the next observation among its inputs (Chen et al. 2018).

    The state holds the last observation, and the hidden state before it: an observation becomes an input only when the
    time to the next one is known.

    kind: tanh or gru. time_gap: whether the time to the next observation is an input. value_unit, gap_unit: values and
    time gaps are divided by these.
    """

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
        self.width, self.time_gap, self.value_unit, self.gap_unit = width, time_gap, value_unit, gap_unit
        self.recurrent = RECURRENT[kind](2 * num_features + time_gap, width)

    def initial_state(self, like: Tensor) -> State:
        """See ``RecurrentCell``."""
        return self.initial_state_from(like.new_zeros(len(like), self.width), like)

    def initial_state_from(self, hidden: Tensor, like: Tensor) -> State:
        """The state before the first observation, from a given hidden state [B, H]; like: see ``initial_state``."""
        return hidden, torch.zeros_like(like), torch.zeros_like(like)

    def advance(self, state: State, gap: Tensor, solve: Solve, longest_gap: float) -> State:
        """Take in the last observation, whose gap to the next one is now known."""
        return self._take_in(state, gap), *state[1:]

    def update(self, state: State, values: Tensor, mask: Tensor) -> State:
        """Store the observation until the next gap is known."""
        return state[0], values, mask.to(values.dtype)

    def hidden_after_last(self, state: State) -> Tensor:
        """The hidden state after taking in the last observation with a gap of 0."""
        return self._take_in(state, state[1].new_zeros(len(state[1])))

    def _take_in(self, state: State, gap: Tensor) -> Tensor:
        hidden, values, mask = state
        inputs = [values / self.value_unit, mask]
        if self.time_gap:
            inputs.append(gap.unsqueeze(1) / self.gap_unit)
        return self.recurrent(torch.cat(inputs, 1), hidden)


class DecayFactor(nn.Module):
    """The factor exp(-max(0, W gap + b)), in (0, 1] (Che et al. 2018).

    num_gaps: W is [width, num_gaps]; None: W is diagonal.
    """

    def __init__(self, width: int, num_gaps: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, num_gaps or 1))
        self.bias = nn.Parameter(torch.zeros(width))
        # Start with positive numbers: where W gap + b is negative, the maximum is 0 and has no gradient.
        nn.init.uniform_(self.weight, 0, 1 / math.sqrt(num_gaps or 1))
        self._diagonal = num_gaps is None

    def forward(self, gap: Tensor) -> Tensor:
        """Return the factors [B, width]. gap: [B, width] or [B, 1] if W is diagonal, else [B, num_gaps]."""
        exponent = gap * self.weight.squeeze(1) if self._diagonal else gap @ self.weight.T
        return torch.exp(-torch.relu(exponent + self.bias))


class RNNDecayCell(RecurrentCell):
    """A GRU whose hidden state decays between observations, each unit at its own rate (RNN-Decay)."""

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.decay = DecayFactor(width)
        self.recurrent = nn.GRUCell(2 * num_features, width)

    def advance(self, state: State, gap: Tensor, solve: Solve, longest_gap: float) -> State:
        """Decay the hidden state."""
        return (state[0] * self.decay(gap.unsqueeze(1)),)


class GRUDCell(RecurrentCell):
    """GRU-D (Che et al. 2018): the hidden state decays to 0, and the last value of each feature to its mean.

    The state is the hidden state, the last value of each feature [B, D], and the time since that observation [B, D].

    means: [D], the mean of each feature over the training data.
    """

    means: Tensor

    def __init__(self, num_features: int, width: int, means: Tensor) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("means", means)
        self.hidden_decay = DecayFactor(width, num_features)
        self.value_decay = DecayFactor(num_features)
        self.recurrent = nn.GRUCell(2 * num_features, width)

    def initial_state(self, like: Tensor) -> State:
        """The state before the first observation: zeros, with each feature at its mean."""
        return like.new_zeros(len(like), self.width), self.means.expand_as(like), torch.zeros_like(like)

    def advance(self, state: State, gap: Tensor, solve: Solve, longest_gap: float) -> State:
        """Decay the hidden state by the time since each feature was observed."""
        hidden, last, since = state
        since = since + gap.unsqueeze(1)
        return hidden * self.hidden_decay(since), last, since

    def update(self, state: State, values: Tensor, mask: Tensor) -> State:
        """Take a step of the GRU; decayed values replace those that were not observed."""
        hidden, last, since = state
        decay = self.value_decay(since)
        values = torch.where(mask, values, decay * last + (1 - decay) * self.means)
        hidden = self.recurrent(torch.cat((values, mask), 1), hidden)
        return hidden, torch.where(mask, values, last), since.masked_fill(mask, 0)


class MLPGRUCell(nn.Module):
    """A GRU step whose gates and candidate are networks with one hidden layer (Rubanova et al. 2019).

    units: the width of each hidden layer.
    """

    def __init__(self, num_in: int, width: int, units: int) -> None:
        super().__init__()
        self.update_gate = mlp(num_in + width, width, units, 1, "tanh")
        self.reset_gate = mlp(num_in + width, width, units, 1, "tanh")
        self.candidate = mlp(num_in + width, width, units, 1, "tanh")

    def forward(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """Return the next hidden state [B, width], from inputs [B, num_in] and the hidden state [B, width]."""
        both = torch.cat((hidden, inputs), 1)
        update, reset = torch.sigmoid(self.update_gate(both)), torch.sigmoid(self.reset_gate(both))
        candidate = torch.tanh(self.candidate(torch.cat((hidden * reset, inputs), 1)))
        return torch.lerp(candidate, hidden, update)


class ODERNNCell(RecurrentCell):
    """ODE-RNN (Rubanova et al. 2019, algorithm 1): an ODE between observations, a GRU step at each.

    The gaps of all series are solved at once, each scaled to [0, 1]: dh/ds = gap f(h). This takes as many solves as the
    longest series has observations; stepping through the union of all times would take one solve per time. With fixed
    steps each solve is a single step, and there are as many solves as the longest series needs steps.

    field: the field of dh/dt = f(t, h), which must not depend on t. gate_units: see ``MLPGRUCell``.
    solver, step: take fixed steps of this method, no longer than `step`, and backpropagate through them. None: use the
        method of the given solve. If the gaps differ much, adaptive steps are faster with stepping="per_sample".
    """

    continuous_time = True

    def __init__(
        self, num_features: int, width: int, field: nn.Module, gate_units: int, solver: str | None, step: float
    ) -> None:
        super().__init__()
        self.width, self.solver, self.step = width, solver, step
        self.max_gap = step if solver is not None else None
        self.field = field
        self.recurrent = MLPGRUCell(2 * num_features, width, gate_units)

    def advance(self, state: State, gap: Tensor, solve: Solve, longest_gap: float) -> State:
        """Solve the ODE over the gap."""
        more: dict[str, Any] = {}
        if self.solver is not None:
            steps = max(math.ceil(longest_gap / self.step * (1 - GAP_RTOL)), 1)
            more = {
                "method": self.solver,
                "steps": steps,
                "step_size": None,
                "gradient": "backprop",
                "stepping": "shared",
                "compile": False,
                "compile_math": "exact",
            }
        gaps = ode.Rows(gap.unsqueeze(1))
        return (solve(self._scaled_field, state[0], (0.0, 1.0), args=(gaps,), first_step=None, **more).y[-1],)

    def _scaled_field(self, t: Tensor, h: Tensor, gap: Tensor) -> Tensor:
        return gap * self.field(t, h)
