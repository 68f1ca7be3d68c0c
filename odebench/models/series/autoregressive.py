"""Recurrent networks that predict each observation from the earlier ones."""

from typing import Any, Literal

from torch import Tensor

from odebench import ode
from odebench.models.series.base import Decoder, SeriesModel
from odebench.models.series.cells import GRUDCell, ODERNNCell, RNNDecayCell, TimeGapCell
from odebench.models.series.fields import AutonomousField
from odebench.models.series.forecast import Forecast
from odebench.models.series.recurrence import ObservedSeries, RecurrentCell, Solve, SolveRecorder, make_grid, run_cell


class AutoregressiveModel(SeriesModel):
    """A model of p(x_i | x_1, ..., x_(i-1)): x_i is decoded from the state of a cell at t_i, before it takes in x_i.

    See ``odebench.models.series`` for how it is called. The label is predicted from the state after the last
    observation.

    width: the width of the cell's hidden state. rollout: whether the cell takes its own predictions as input after the
    last observation. heads: see ``SeriesModel.add_heads``.
    """

    latent_dim = 0
    decoder: Decoder

    def __init__(self, cell: RecurrentCell, num_features: int, width: int, rollout: bool, **heads: Any) -> None:
        super().__init__()
        self.cell, self.rollout = cell, rollout
        self.feeds_back_predictions = rollout
        self.add_heads(num_features, width, width, **heads)

    def forward(
        self,
        inputs: ObservedSeries,
        times: Tensor,
        solve: Solve = ode.solve,
        requested: Tensor | None = None,
        noise: None = None,
    ) -> Forecast:
        """See ``odebench.models.series``."""
        recorder = SolveRecorder(solve)
        grid = make_grid(inputs, times, requested, self.cell.max_gap)
        start, from_zero = self.cell.initial_state(grid.values[:, 0]), grid.times.new_zeros(len(grid.times))
        output = run_cell(self.cell, grid, start, from_zero, recorder, self.decoder if self.rollout else None)
        values = grid.scatter(self.decoder(output.hidden_states), len(times))
        logits = None
        if self.classifier is not None:
            logits = self.logits(self.cell.hidden_after_last(output.state_after_last).unsqueeze(0))
        return Forecast(values.unsqueeze(0), encoder_stats=recorder.stats, logits=logits)


def rnn(
    num_features: int,
    width: int,
    kind: Literal["tanh", "gru"],
    time_gap: bool,
    value_unit: float,
    gap_unit: float,
    **options: Any,
) -> AutoregressiveModel:
    """A plain recurrent network; see ``TimeGapCell``. options: arguments of ``AutoregressiveModel``."""
    cell = TimeGapCell(num_features, width, kind, time_gap, value_unit, gap_unit)
    return AutoregressiveModel(cell, num_features, width, **options)


def rnn_decay(num_features: int, width: int, **options: Any) -> AutoregressiveModel:
    """A GRU whose state decays between observations. options: arguments of ``AutoregressiveModel``."""
    return AutoregressiveModel(RNNDecayCell(num_features, width), num_features, width, **options)


def gru_d(num_features: int, feature_means: Tensor, width: int, **options: Any) -> AutoregressiveModel:
    """GRU-D (Che et al. 2018).

    feature_means: [D], the mean of each feature in the data. options: arguments of ``AutoregressiveModel``.
    """
    return AutoregressiveModel(GRUDCell(num_features, width, feature_means), num_features, width, **options)


def ode_rnn(
    num_features: int,
    span: float,
    width: int,
    field_units: int,
    field_layers: int,
    activation: str,
    gate_units: int,
    encoder_solver: str | None,
    encoder_step: float,
    **options: Any,
) -> AutoregressiveModel:
    """ODE-RNN (Rubanova et al. 2019).

    field_units, field_layers, activation: see ``LatentODE``. gate_units, encoder_solver, encoder_step: see
    ``ODERNNCell``. options: arguments of ``AutoregressiveModel``.
    """
    field = AutonomousField(width, field_units, field_layers, activation)
    cell = ODERNNCell(num_features, width, field, gate_units, encoder_solver, encoder_step * span)
    return AutoregressiveModel(cell, num_features, width, **options)
