"""What a density training refuses: data, a loss and a model that do not go together. Each is one line."""

from typing import Any

import torch

from odebench.config.settings import Settings
from odebench.data import DensityData, ImageData
from odebench.errors import UsageError


def check_data(data: Any, settings: Settings) -> None:
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
        data.check_target()


def check_model(model: Any, data: DensityData | ImageData, settings: Settings) -> None:
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
