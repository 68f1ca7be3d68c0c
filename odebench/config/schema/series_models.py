"""The models of irregular series, and their options."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from odebench.config.schema.base import Choice, Fraction, NonNegativeInt, PositiveFloat, PositiveInt

Activation = Literal["tanh", "elu", "relu", "softplus"]


@dataclass(frozen=True)
class _SeriesModelSettings(Choice):
    """Settings of every model of series: Gaussian observations, and a head for a label."""

    tasks: ClassVar[tuple[str, ...]] = ("time_series",)
    has_ode: ClassVar[bool] = False
    decoder_units: NonNegativeInt
    noise_std: PositiveFloat
    learn_noise: bool
    classify: bool
    classifier_units: PositiveInt


@dataclass(frozen=True)
class LatentODESettings(_SeriesModelSettings):
    """The settings of ``latent_ode``."""

    has_ode: ClassVar[bool] = True
    latent_dim: PositiveInt
    field_units: PositiveInt
    field_layers: NonNegativeInt
    activation: Activation
    augment: NonNegativeInt
    second_order: bool
    encoder: Literal["rnn", "gru", "ode_rnn"]
    value_unit: PositiveFloat
    gap_unit: PositiveFloat
    encoder_width: PositiveInt
    encoder_field_units: PositiveInt
    gate_units: PositiveInt
    encoder_solver: str | None
    encoder_step: Fraction
    observations: bool
    events: bool
    event_units: PositiveInt


@dataclass(frozen=True)
class RNNVAESettings(_SeriesModelSettings):
    """The settings of ``rnn_vae``."""

    latent_dim: PositiveInt
    encoder_width: PositiveInt
    decoder_width: PositiveInt


@dataclass(frozen=True)
class AutoregressiveSettings(_SeriesModelSettings):
    """The settings of ``rnn_decay`` and ``gru_d``."""

    width: PositiveInt
    rollout: bool


@dataclass(frozen=True)
class RNNSettings(AutoregressiveSettings):
    """The settings of ``rnn``."""

    kind: Literal["tanh", "gru"]
    time_gap: bool
    value_unit: PositiveFloat
    gap_unit: PositiveFloat


@dataclass(frozen=True)
class ODERNNSettings(AutoregressiveSettings):
    """The settings of ``ode_rnn``."""

    has_ode: ClassVar[bool] = True
    field_units: PositiveInt
    field_layers: NonNegativeInt
    activation: Activation
    gate_units: PositiveInt
    encoder_solver: str | None
    encoder_step: Fraction


@dataclass(frozen=True)
class BaselineSettings(Choice):
    """The settings of ``baseline``."""

    tasks: ClassVar[tuple[str, ...]] = ("time_series",)
    has_ode: ClassVar[bool] = False
    kind: Literal["training_mean", "series_mean", "last_value"]
    noise_std: PositiveFloat


@dataclass(frozen=True)
class EventSmoothingSettings(Choice):
    """The settings of ``event_smoothing``."""

    tasks: ClassVar[tuple[str, ...]] = ("time_series",)
    has_ode: ClassVar[bool] = False
    observations: bool
    bandwidth: PositiveFloat
    noise_std: PositiveFloat


SERIES_MODELS: dict[str, type[Any]] = {
    "latent_ode": LatentODESettings,
    "rnn_vae": RNNVAESettings,
    "rnn": RNNSettings,
    "rnn_decay": AutoregressiveSettings,
    "gru_d": AutoregressiveSettings,
    "ode_rnn": ODERNNSettings,
    "baseline": BaselineSettings,
    "event_smoothing": EventSmoothingSettings,
}
