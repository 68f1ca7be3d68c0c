"""Check that data, loss and model fit together. Each check raises a UsageError of one line."""

from typing import Any

import torch

from odebench.config.choices import options_of
from odebench.config.settings import Settings
from odebench.data import DensityData, ImageData
from odebench.data.series import SeriesData
from odebench.errors import UsageError
from odebench.models.series import LatentODE


def check_density_data(data: Any, settings: Settings) -> None:
    """UsageError for data without a density, without the one that the loss needs, or of less than a batch."""
    name, batch_size = settings.data.name, settings.trainer.batch_size
    if not isinstance(data, DensityData | ImageData):
        raise UsageError(f"data={name}: density estimation needs DensityData or ImageData")
    if len(data.train) < batch_size:
        raise UsageError(f"trainer.batch_size={batch_size}: there are only {len(data.train)} training samples")
    if settings.loss.name == "density_matching":
        if not isinstance(data, DensityData) or data.log_density is None:
            raise UsageError(
                f"loss=density_matching: the density of data={name} is not known; choose data=potential_1, ... or "
                "data=eight_gaussians, or loss=maximum_likelihood"
            )
        data.check_density_matching_target()


def check_density_model(model: Any, data: DensityData | ImageData, settings: Settings) -> None:
    """UsageError for a model without what is asked of it, or under which the density would be of something else than
    the data."""
    name = settings.model.name
    if not hasattr(model, "log_prob"):
        raise UsageError(
            f"model={name}: it has no log-likelihood (no log_prob); derive it from odebench.models.flow.Flow"
        )
    if settings.loss.name == "flow_matching":
        if not hasattr(model, "velocity"):
            raise UsageError(f"loss=flow_matching: {name} has no velocity field; choose model=cnf")
        # Of a flow that is not ODEs alone it tells.
        model.velocity(torch.zeros(()), torch.zeros(1, *model.shape))
    if isinstance(data, ImageData):
        if data.crop_padding:
            raise UsageError("data.augment=true: a density is that of the images as they are; set data.augment=false")
        return
    logit = getattr(settings.model, "logit", None)
    if logit and not all(x.min() >= 0 and x.max() <= 1 for x in data.splits().values()):
        raise UsageError(
            f"model.logit={logit:g}: it is for numbers in [0, 1], which those of data={settings.data.name} leave; "
            "model.logit=null"
        )


def check_series_model(model: Any, data: SeriesData, settings: Settings) -> None:
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
