"""The models of irregular series, and their options."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from odebench.rules.numbers import Count, Fraction, Positive, Whole

Activation = Literal["tanh", "elu", "relu", "softplus"]


@dataclass(frozen=True)
class _Observing:
    """What all models of series have: Gaussian observations, and a head for a label."""

    task: ClassVar[str] = "time_series"
    has_ode: ClassVar[bool] = False
    name: str
    decoder_units: Whole
    noise_std: Positive
    learn_noise: bool
    classify: bool
    classifier_units: Count


@dataclass(frozen=True)
class LatentODE(_Observing):
    """latent_ode."""

    has_ode: ClassVar[bool] = True
    latent_dim: Count
    field_units: Count
    field_layers: Whole
    activation: Activation
    augment: Whole
    second_order: bool
    encoder: Literal["rnn", "gru", "ode_rnn"]
    value_unit: Positive
    gap_unit: Positive
    encoder_width: Count
    encoder_field_units: Count
    gate_units: Count
    encoder_solver: str | None
    encoder_step: Fraction
    observations: bool
    events: bool
    event_units: Count


@dataclass(frozen=True)
class RNNVAE(_Observing):
    """rnn_vae."""

    latent_dim: Count
    encoder_width: Count
    decoder_width: Count


@dataclass(frozen=True)
class Autoregressive(_Observing):
    """rnn_decay and gru_d."""

    width: Count
    rollout: bool


@dataclass(frozen=True)
class RNN(Autoregressive):
    """rnn."""

    kind: Literal["tanh", "gru"]
    time_gap: bool
    value_unit: Positive
    gap_unit: Positive


@dataclass(frozen=True)
class ODERNN(Autoregressive):
    """ode_rnn."""

    has_ode: ClassVar[bool] = True
    field_units: Count
    field_layers: Whole
    activation: Activation
    gate_units: Count
    encoder_solver: str | None
    encoder_step: Fraction


SERIES_MODELS: dict[str, type[Any]] = {
    "latent_ode": LatentODE,
    "rnn_vae": RNNVAE,
    "rnn": RNN,
    "rnn_decay": Autoregressive,
    "gru_d": Autoregressive,
    "ode_rnn": ODERNN,
}
