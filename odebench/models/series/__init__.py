"""Models of irregular series. All are called in the same way.

A model is called as model(inputs, times, solve, requested, noise):

    inputs: an ``ObservedSeries``, B series on the union of their times.
    times: [T], increasing, all >= 0: the times at which to predict the series.
    solve: a function like ``odebench.ode.solve`` whose method and gradient mode are already chosen.
    requested: bool [B, T], the predictions to compute; the others are zeros. None: compute all.
    noise: [S, B, ``latent_dim``], standard normal numbers for S samples of the latent state. None: use only its mean,
        so that S = 1. Models without a latent state, whose ``latent_dim`` is 0, ignore it.

The call returns a ``Forecast``. The model's ``noise_std`` [D] is the standard deviation of its Gaussian observations.
"""

from odebench.models.series.autoregressive import gru_d, ode_rnn, rnn, rnn_decay
from odebench.models.series.baselines import ConstantBaseline, EventSmoother
from odebench.models.series.forecast import Forecast, Posterior
from odebench.models.series.latent_ode import LatentODE
from odebench.models.series.recurrence import ObservedSeries
from odebench.models.series.rnn_vae import RNNVAE

__all__ = [
    "RNNVAE",
    "ConstantBaseline",
    "EventSmoother",
    "Forecast",
    "LatentODE",
    "ObservedSeries",
    "Posterior",
    "gru_d",
    "ode_rnn",
    "rnn",
    "rnn_decay",
]
