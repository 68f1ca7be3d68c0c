"""The predictions of a model for a batch of series."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from odebench import ode


class Posterior(NamedTuple):
    """q(z0 | x) of each series, a Gaussian with independent dimensions: mean and std [B, L]."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Forecast:
    """S samples for each of B series. A field is None if the model does not predict it.

    values: [S, B, T, D], means of the Gaussian observations.
    encoder_stats, decoder_stats: statistics of the solves of the encoder and of the decoder.
    posterior: the posterior of the initial latent state.
    latents: [S, B, T, L], the latent states that the values are decoded from.
    logits: [S, B], logits of the series' label.
    log_rates: [S, B, T, E], the log of the rate of each kind of event.
    expected_events: [S, B], the integral of the rates of all kinds together over the part of the span with targets.
    """

    values: Tensor | None
    encoder_stats: tuple[ode.Stats, ...] = ()
    decoder_stats: tuple[ode.Stats, ...] = ()
    posterior: Posterior | None = None
    latents: Tensor | None = None
    logits: Tensor | None = None
    log_rates: Tensor | None = None
    expected_events: Tensor | None = None

    def at_times(self, columns: Tensor) -> "Forecast":
        """The forecast at some of the T times, given by their indices."""
        by_time = {name: getattr(self, name) for name in ("values", "latents", "log_rates")}
        return replace(self, **{name: x[:, :, columns] for name, x in by_time.items() if x is not None})
