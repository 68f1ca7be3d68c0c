"""Models of irregular series: one call for all of them.

A model is called as model(inputs, times, solve, wanted, noise):

    inputs: an ``Observed``, B series on the union of their times.
    times: [T] increasing, none before the model's ``start_time``: where the series are predicted.
    solve: the engine's, its method and gradient mode chosen.
    wanted: bool [B, T], which of the predictions are of use; the others are left out, as zeros. None: all.
    noise: [S, B, ``latent_dim``] standard normal numbers, for S samples of the latent state; None for its mean alone,
        S = 1. Models without a latent variable, ``latent_dim`` 0, make no use of it.

It returns a ``Forecast``. ``noise_std`` [D] is the standard deviation of its Gaussian observations.
"""

from odebench.models.series.autoregressive import gru_d, ode_rnn, rnn, rnn_decay
from odebench.models.series.forecast import Forecast, Posterior
from odebench.models.series.latent_ode import LatentODE
from odebench.models.series.reading import Observed
from odebench.models.series.rnn_vae import RNNVAE

__all__ = ["RNNVAE", "Forecast", "LatentODE", "Observed", "Posterior", "gru_d", "ode_rnn", "rnn", "rnn_decay"]
