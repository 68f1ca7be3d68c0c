"""Models of irregular series. All are called in the same way.

A model is called as model(inputs, times, solve, requested, noise):

    inputs: an ``ObservedSeries``, B series on the union of their times.
    times: [T] increasing, from 0 on: where to predict the series.
    solve: ``odebench.ode.solve`` with the method and the gradient mode chosen.
    requested: bool [B, T], which predictions to compute; the others are zeros. None: all.
    noise: [S, B, ``latent_dim``] standard normal numbers, for S samples of the latent state; None for its mean alone,
        S = 1. Models without a latent variable, ``latent_dim`` 0, ignore it.

It returns a ``Forecast``. ``noise_std`` [D] is the standard deviation of its Gaussian observations.
"""

from odebench.models.series.autoregressive import gru_d, ode_rnn, rnn, rnn_decay
from odebench.models.series.forecast import Forecast, Posterior
from odebench.models.series.latent_ode import LatentODE
from odebench.models.series.recurrence import ObservedSeries
from odebench.models.series.rnn_vae import RNNVAE

__all__ = ["RNNVAE", "Forecast", "LatentODE", "ObservedSeries", "Posterior", "gru_d", "ode_rnn", "rnn", "rnn_decay"]
