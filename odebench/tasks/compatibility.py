"""Check that data, loss and model fit together. Each check raises a UsageError of one line."""

from typing import Any

import torch

from odebench.config.choices import options_of
from odebench.config.settings import Settings
from odebench.data import DensityData, ImageData
from odebench.data.series import SeriesData
from odebench.errors import UsageError
from odebench.models.series import LatentODE


def check_density_model(model: Any, data: DensityData | ImageData, settings: Settings) -> None:
    """Raise UsageError if the data or the model lacks what the loss needs.

    Also raised if the model would be trained on something else than the data: augmented images, or values that it
    cannot represent.
    """
    name, data_name = settings.model.name, settings.data.name
    if settings.loss.name == "density_matching":
        if not isinstance(data, DensityData) or data.log_density is None:
            line = f"the density of data={data_name} is not known; choose loss=maximum_likelihood or data=potential_1"
            raise UsageError(f"loss=density_matching: {line}")
        data.check_density_matching_target()
    if not hasattr(model, "log_prob"):
        raise UsageError(f"model={name}: it has no log_prob; derive it from odebench.models.flow.Flow")
    if settings.loss.name == "flow_matching":
        if not hasattr(model, "velocity"):
            raise UsageError(f"loss=flow_matching: {name} has no velocity field; choose model=cnf")
        # This call raises UsageError if the flow has layers that are not ODEs.
        model.velocity(torch.zeros(()), torch.zeros(1, *model.shape))
    if isinstance(data, ImageData):
        if data.crop_padding:
            raise UsageError("data.augment=true: density estimation needs unaugmented images; set data.augment=false")
        return
    logit = getattr(settings.model, "logit", None)
    if logit and not all(x.min() >= 0 and x.max() <= 1 for x in data.splits().values()):
        line = f"it needs values in [0, 1], and data={data_name} has others; set model.logit=null"
        raise UsageError(f"model.logit={logit:g}: {line}")


def check_series_model(model: Any, data: SeriesData, settings: Settings) -> None:
    """Raise UsageError if a time series model cannot be trained with this loss or this data."""
    name, is_latent = settings.model.name, model.latent_dim > 0
    fitting = "elbo" if is_latent else "autoregressive"
    if settings.loss.name != fitting:
        has = "has a latent variable" if is_latent else "has no latent variable"
        raise UsageError(f"loss={settings.loss.name}: {name} {has}; choose loss={fitting}")
    if options_of(settings.loss).get("consistency", 0.0):
        train = data.train
        if not (isinstance(model, LatentODE) and (train.is_input & train.is_target).any()):
            line = "needs model=latent_ode and series whose inputs are also targets; set it to 0"
            raise UsageError(f"loss.consistency: {line}")
    if model.classifier is not None and data.num_classes != 2:
        line = f"needs series with labels of two classes; data={settings.data.name} has none"
        raise UsageError(f"model.classify=true: {line}")
    has_events = getattr(model, "rates", None) is not None
    if model.noise_std is None and not has_events:
        raise UsageError("model.observations=false: nothing is left to predict; set model.events=true")
    # The likelihood counts every time from the first target on without a target event as a time without events.
    for split in data.splits().values() if has_events else ():
        if (split.is_input & ~split.is_target & (split.times >= data.target_start)).any():
            line = "has input events that are not targets between its targets; set model.events=false"
            raise UsageError(f"model.events=true: data={settings.data.name} {line}")
