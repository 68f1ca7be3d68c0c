"""The models by name.

A model is called with a batch and with ``solve``, a function like ``odebench.ode.solve`` whose solver and gradient mode
are already chosen. It returns its output and the ``Stats`` of each solve.
"""

from collections.abc import Callable

from torch import nn

from odebench.models.cnf import CNF
from odebench.models.ffjord import FFJORD
from odebench.models.mlp import MLP
from odebench.models.odenet import ODENet
from odebench.models.planar_flow import PlanarFlow
from odebench.models.resnet import ResNet
from odebench.models.series import RNNVAE, ConstantBaseline, EventSmoother, LatentODE, gru_d, ode_rnn, rnn, rnn_decay

MODELS: dict[str, Callable[..., nn.Module]] = {
    "odenet": ODENet,
    # The same network as odenet; only the default gradient mode differs.
    "rknet": ODENet,
    "resnet": ResNet,
    "mlp": MLP,
    "cnf": CNF,
    "ffjord": FFJORD,
    "planar_nf": PlanarFlow,
    "latent_ode": LatentODE,
    "ode_rnn": ode_rnn,
    "rnn": rnn,
    "rnn_decay": rnn_decay,
    "gru_d": gru_d,
    "rnn_vae": RNNVAE,
    "baseline": ConstantBaseline,
    "event_smoothing": EventSmoother,
}

__all__ = ["CNF", "FFJORD", "MLP", "MODELS", "LatentODE", "ODENet", "PlanarFlow", "ResNet"]
