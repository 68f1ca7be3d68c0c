"""What a model says of a batch of series."""

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
    """S samples for each of B series.

    values: [S, B, T, D] means of the Gaussian observations; None where the model has no such.
    encoder, decoder: statistics of the solves by their role.
    posterior: None for models without a latent variable.
    latents: [S, B, T, L] the latent states that the values are decoded from.
    logits: [S, B] of the series' label.
    log_rates: [S, B, T, E] log of the rate of each kind of event.
    expected_events: [S, B] integral of the rates of all kinds over the whole span.
    """

    values: Tensor | None
    encoder: tuple[ode.Stats, ...] = ()
    decoder: tuple[ode.Stats, ...] = ()
    posterior: Posterior | None = None
    latents: Tensor | None = None
    logits: Tensor | None = None
    log_rates: Tensor | None = None
    expected_events: Tensor | None = None

    def at(self, columns: Tensor) -> "Forecast":
        """The same at some of the T times."""
        by_time = {name: getattr(self, name) for name in ("values", "latents", "log_rates")}
        return replace(self, **{name: x[:, :, columns] for name, x in by_time.items() if x is not None})
