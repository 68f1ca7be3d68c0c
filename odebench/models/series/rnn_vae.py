"""The latent variable model without an ODE."""

from typing import Any

from torch import Tensor, nn

from odebench import ode
from odebench.models.series.cells import GapCell
from odebench.models.series.decoders import Decoder
from odebench.models.series.encoders import RecurrentEncoder, samples
from odebench.models.series.forecast import Forecast
from odebench.models.series.observing import Observing
from odebench.models.series.reading import Observations, Observed, Solve, own_times, read, spread


class RNNVAE(Observing):
    """A variational autoencoder of two recurrent networks (Rubanova et al. 2019, section 4).

    Both are GRUs with the time gaps as inputs. One reads the observations backwards; the other starts from z0 and goes
    through the wanted times of each series, reading its own predictions. See ``odebench.models.series`` for the call.

    num_features: of the data. latent_dim: of z0. encoder_width, decoder_width: of the hidden states.
    heads: see ``Observing.add_heads``; z0 says the label.
    """

    decoder: Decoder
    reads_itself = True

    def __init__(
        self, num_features: int, latent_dim: int, encoder_width: int, decoder_width: int, **heads: Any
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = RecurrentEncoder(num_features, encoder_width, latent_dim, "gru")
        self.first_hidden = nn.Linear(latent_dim, decoder_width)
        self.cell = GapCell(num_features, decoder_width, "gru", time_gap=True)
        self.add_heads(num_features, decoder_width, latent_dim, **heads)

    def forward(
        self,
        inputs: Observed,
        times: Tensor,
        solve: Solve = ode.solve,
        wanted: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Forecast:
        """See ``odebench.models.series``."""
        posterior, _ = self.encoder(inputs, solve)
        z0 = samples(posterior, noise)
        num_samples, num, _ = z0.shape
        unseen = inputs.values.new_zeros(num_samples * num, inputs.values.shape[2])
        nothing = Observations(times[:0], unseen.unsqueeze(1)[:, :0], unseen.bool().unsqueeze(1)[:, :0])
        grid = own_times(nothing, times, None if wanted is None else wanted.repeat(num_samples, 1))
        state = self.cell.start_from(self.first_hidden(z0.flatten(0, 1)), unseen)
        reading = read(self.cell, grid, state, grid.times.new_zeros(len(unseen)), solve, self.decoder)
        values = spread(self.decoder(reading.hiddens), grid, len(times))
        return Forecast(
            values=values.unflatten(0, (num_samples, num)),
            posterior=posterior,
            logits=self.logits(z0),
        )
