"""Recurrent networks that predict each observation from those before it."""

from typing import Any, Literal

from torch import Tensor

from odebench import ode
from odebench.models.series.cells import DecayCell, GapCell, GRUDCell, ODECell
from odebench.models.series.decoders import Decoder
from odebench.models.series.fields import AutonomousField
from odebench.models.series.forecast import Forecast
from odebench.models.series.observing import Observing
from odebench.models.series.reading import Cell, Counted, Observed, Solve, own_times, read, spread


class Autoregressive(Observing):
    """p(x_i | x_1, ..., x_(i-1)), decoded from the state of a cell at t_i before x_i is seen.

    See ``odebench.models.series`` for how it is called. A label is said from the state after the last observation.

    width: of the cell's hidden state. rollout: whether predictions are read as if they were observations where there
    are no more of these. heads: see ``Observing.add_heads``.
    """

    latent_dim = 0
    decoder: Decoder

    def __init__(self, cell: Cell, num_features: int, width: int, rollout: bool, **heads: Any) -> None:
        super().__init__()
        self.cell, self.rollout = cell, rollout
        self.reads_itself = rollout
        self.add_heads(num_features, width, width, **heads)

    def forward(
        self,
        inputs: Observed,
        times: Tensor,
        solve: Solve = ode.solve,
        wanted: Tensor | None = None,
        noise: None = None,
    ) -> Forecast:
        """See ``odebench.models.series``."""
        counted = Counted(solve)
        grid = own_times(inputs, times, wanted, self.cell.longest_gap)
        start, from_zero = self.cell.start(grid.values[:, 0]), grid.times.new_zeros(len(grid.times))
        reading = read(self.cell, grid, start, from_zero, counted, self.decoder if self.rollout else None)
        values = spread(self.decoder(reading.hiddens), grid, len(times))
        logits = None
        if self.classifier is not None:
            logits = self.logits(self.cell.summary(reading.told).unsqueeze(0))
        return Forecast(values.unsqueeze(0), encoder=counted.stats, logits=logits)


def rnn(
    num_features: int,
    width: int,
    kind: Literal["tanh", "gru"],
    time_gap: bool,
    value_unit: float,
    gap_unit: float,
    **options: Any,
) -> Autoregressive:
    """A plain recurrent network; see ``GapCell`` for all but options, which are of ``Autoregressive``."""
    cell = GapCell(num_features, width, kind, time_gap, value_unit, gap_unit)
    return Autoregressive(cell, num_features, width, **options)


def rnn_decay(num_features: int, width: int, **options: Any) -> Autoregressive:
    """A GRU whose state decays between observations. options: of ``Autoregressive``."""
    return Autoregressive(DecayCell(num_features, width), num_features, width, **options)


def gru_d(num_features: int, feature_means: Tensor, width: int, **options: Any) -> Autoregressive:
    """GRU-D (Che et al. 2018); feature_means: [D], of the data. options: of ``Autoregressive``."""
    return Autoregressive(GRUDCell(num_features, width, feature_means), num_features, width, **options)


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
) -> Autoregressive:
    """ODE-RNN (Rubanova et al. 2019). The field as for ``LatentODE``, the others as for ``ODECell``; options: of
    ``Autoregressive``."""
    field = AutonomousField(width, field_units, field_layers, activation)
    cell = ODECell(num_features, width, field, gate_units, encoder_solver, encoder_step * span)
    return Autoregressive(cell, num_features, width, **options)
