"""What a model of series, its loss and its data must have in common."""

from typing import Any

from odebench.config.choices import options_of
from odebench.config.settings import Settings
from odebench.data.series import SeriesData
from odebench.errors import UsageError
from odebench.models.series import LatentODE


def check_series(model: Any, data: SeriesData, settings: Settings) -> None:
    """UsageError for a loss, or data, that a model of series cannot be trained with."""
    name, is_latent = settings.model.name, model.latent_dim > 0
    fitting = "elbo" if is_latent else "autoregressive"
    if settings.loss.name != fitting:
        has = "has a latent variable" if is_latent else "has no latent variable"
        raise UsageError(f"loss={settings.loss.name}: {name} {has}; choose loss={fitting}")
    if options_of(settings.loss).get("consistency", 0.0):
        train = data.train
        if not (isinstance(model, LatentODE) and (train.is_input & train.is_target).any()):
            raise UsageError(
                "loss.consistency: needs model=latent_ode and series of which the same times are encoded and asked "
                "for; set it to 0"
            )
    if model.classifier is not None and data.num_classes != 2:
        raise UsageError(
            f"model.classify=true: needs series with labels of two classes, which data={settings.data.name} has not"
        )
    has_events = getattr(model, "rates", None) is not None
    if model.noise_std is None and not has_events:
        raise UsageError("model.observations=false: nothing is left to predict; set model.events=true")
    # Their likelihood is also one of their absence at all times that it is not told of.
    if has_events and any((split.is_input & ~split.is_target).any() for split in data.splits().values()):
        raise UsageError(
            f"model.events=true: events of data={settings.data.name} that are encoded are not asked for, as if "
            "there were none; set data.mode=interpolation, or model.events=false"
        )
