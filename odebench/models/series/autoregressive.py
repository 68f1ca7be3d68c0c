"""Recurrent networks that predict each observation from those before it."""

from typing import Any, Literal

from torch import Tensor, nn

from odebench import ode
from odebench.models.series.cells import DecayCell, GapCell, GRUDCell, ODECell
from odebench.models.series.decoders import Decoder, classifier
from odebench.models.series.fields import AutonomousField
from odebench.models.series.forecast import Forecast
from odebench.models.series.reading import Cell, Counted, Observed, Solve, own_times, read, spread


class Autoregressive(nn.Module):
    """p(x_i | x_1, ..., x_(i-1)), decoded from the state of a cell at t_i before x_i is seen.

    See ``odebench.models.series`` for how it is called. A label is said from the state after the last observation.

    rollout: whether predictions are read as if they were observations where there are no more of these. The other
    arguments as for ``LatentODE``; the cell's hidden state is of the given width.
    """

    latent_dim = 0

    def __init__(
        self,
        cell: Cell,
        num_features: int,
        width: int,
        rollout: bool,
        decoder_units: int,
        noise_std: float,
        learn_noise: bool,
        classify: bool,
        classifier_units: int,
    ) -> None:
        super().__init__()
        self.cell, self.rollout = cell, rollout
        self.decoder = Decoder(width, num_features, decoder_units, noise_std, learn_noise)
        self.classifier = classifier(width, classifier_units) if classify else None

    @property
    def noise_std(self) -> Tensor:
        """Standard deviation of the observations [D]."""
        return self.decoder.noise_std

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
        start, now = self.cell.start(grid.values[:, 0]), grid.times.new_zeros(len(grid.times))
        reading = read(self.cell, grid, start, now, counted, self.decoder if self.rollout else None)
        values = spread(self.decoder(reading.hiddens), grid, len(times))
        logits = None
        if self.classifier is not None:
            told = self.cell.advance(reading.told, now, counted)
            logits = self.classifier(told[0]).view(1, -1)
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
