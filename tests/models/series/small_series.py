"""A batch of irregular series, and every model of them, small and in float64."""

import torch

from odebench.models.series import RNNVAE, LatentODE, gru_d, ode_rnn, rnn, rnn_decay
from odebench.models.series.recurrence import Observations

HEADS = {"decoder_units": 5, "noise_std": 0.1, "learn_noise": True, "classify": True, "classifier_units": 4}
FIELD = {"field_units": 6, "field_layers": 1, "activation": "tanh"}
GATES = {"gate_units": 5, "encoder_solver": None, "encoder_step": 0.1}
EULER = {"encoder_solver": "euler", "encoder_step": 0.02}
UNITS = {"value_unit": 1.0, "gap_unit": 1.0}
LATENT = {
    "span": 1.5,
    "target_start": 0.0,
    "latent_dim": 3,
    **FIELD,
    "augment": 0,
    "second_order": False,
    "encoder_width": 6,
    "encoder_field_units": 6,
    **UNITS,
    **GATES,
    "observations": True,
    **HEADS,
    "events": True,
    "event_units": 4,
}
BUILD = {
    "latent_ode": lambda: LatentODE(2, encoder="rnn", **LATENT),
    "latent_ode_ode_rnn": lambda: LatentODE(2, encoder="ode_rnn", **LATENT),
    "latent_ode_euler": lambda: LatentODE(2, encoder="ode_rnn", **LATENT | EULER),
    "rnn_vae": lambda: RNNVAE(2, latent_dim=3, encoder_width=6, decoder_width=7, **HEADS),
    "rnn": lambda: rnn(2, width=6, kind="tanh", time_gap=True, rollout=True, **UNITS, **HEADS),
    "rnn_decay": lambda: rnn_decay(2, width=6, rollout=True, **HEADS),
    "gru_d": lambda: gru_d(2, torch.tensor([0.3, -0.2]), width=6, rollout=True, **HEADS),
    "ode_rnn": lambda: ode_rnn(2, span=1.5, width=6, **FIELD, **GATES, rollout=False, **HEADS),
    "ode_rnn_rolled_out": lambda: ode_rnn(2, span=1.5, width=6, **FIELD, **GATES, rollout=True, **HEADS),
    "ode_rnn_euler": lambda: ode_rnn(2, span=1.5, width=6, **FIELD, **GATES | EULER, rollout=False, **HEADS),
}


def build(name):
    """A model by its name in float64, with the same weights each time, large enough that every part matters."""
    torch.manual_seed(0)
    return enlarged(BUILD[name]())


def latent_ode(**changes):
    """The latent ODE with changed options."""
    torch.manual_seed(0)
    return enlarged(LatentODE(2, **{"encoder": "rnn"} | LATENT | changes))


def enlarged(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5 if p.dim() > 1 else 1.0)
    return model.double()


def small_batch():
    """Four series of two features on nine times in (0, 1), the last series observed only once."""
    generator = torch.Generator().manual_seed(1)
    times = torch.rand(9, generator=generator, dtype=torch.float64).sort().values
    mask = torch.rand(4, 9, 2, generator=generator) < 0.4
    mask[0, 0] = mask[1, 8] = True
    mask[3] = False
    mask[3, 4, 0] = True
    values = torch.randn(4, 9, 2, generator=generator, dtype=torch.float64)
    return Observations(times, torch.where(mask, values, 0), mask)


# Where to predict: at times without an observation, and after the last observation.
TIMES = torch.tensor([0.0, 0.11, 0.5, 0.77, 1.1, 1.3], dtype=torch.float64)


def noise_for(model, num_samples=2, num=4):
    """Noise for samples of the latent state; None where there is none."""
    generator = torch.Generator().manual_seed(2)
    shape = (num_samples, num, model.latent_dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64) if model.latent_dim else None
