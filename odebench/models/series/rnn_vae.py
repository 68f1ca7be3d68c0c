"""A latent variable model without an ODE."""

from typing import Any

from torch import Tensor, nn

from odebench import ode
from odebench.models.series.base import Decoder, SeriesModel
from odebench.models.series.cells import TimeGapCell
from odebench.models.series.encoders import RecurrentEncoder, sample_posterior
from odebench.models.series.forecast import Forecast
from odebench.models.series.recurrence import Observations, ObservedSeries, Solve, make_grid, run_cell


class RNNVAE(SeriesModel):
    """A variational autoencoder made of two recurrent networks (Rubanova et al. 2019, section 4).

    Both are GRUs with the time gaps as inputs. The encoder runs backwards through the observations. The decoder runs
    from z0 through the requested times of each series, with its own predictions as inputs. See
    ``odebench.models.series`` for how the model is called.

    num_features: the number of features in the data. latent_dim: the dimension of z0. encoder_width, decoder_width: the
    widths of the hidden states.
    heads: see ``SeriesModel.add_heads``; the label is predicted from z0.
    """

    decoder: Decoder
    feeds_back_predictions = True

    def __init__(
        self, num_features: int, latent_dim: int, encoder_width: int, decoder_width: int, **heads: Any
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = RecurrentEncoder(num_features, encoder_width, latent_dim, "gru")
        self.first_hidden = nn.Linear(latent_dim, decoder_width)
        self.cell = TimeGapCell(num_features, decoder_width, "gru", time_gap=True)
        self.add_heads(num_features, decoder_width, latent_dim, **heads)

    def forward(
        self,
        inputs: ObservedSeries,
        times: Tensor,
        solve: Solve = ode.solve,
        requested: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Forecast:
        """See ``odebench.models.series``."""
        posterior, _ = self.encoder(inputs, solve)
        z0 = sample_posterior(posterior, noise)
        num_samples, num, _ = z0.shape
        zeros = inputs.values.new_zeros(num_samples * num, inputs.values.shape[2])
        nothing = Observations(times[:0], zeros.unsqueeze(1)[:, :0], zeros.bool().unsqueeze(1)[:, :0])
        grid = make_grid(nothing, times, None if requested is None else requested.repeat(num_samples, 1))
        state = self.cell.initial_state_from(self.first_hidden(z0.flatten(0, 1)), zeros)
        output = run_cell(self.cell, grid, state, grid.times.new_zeros(len(zeros)), solve, self.decoder)
        values = grid.scatter(self.decoder(output.hidden_states), len(times))
        values = values.unflatten(0, (num_samples, num))
        return Forecast(values=values, posterior=posterior, logits=self.logits(z0))
