"""The quantities that each task measures, with units, and the splits that a model is evaluated on."""

import math
from collections.abc import Mapping
from typing import NamedTuple

# The splits that a trained model can be evaluated on, the default first.
SPLITS = ("validation", "test", "train")


class Quantity(NamedTuple):
    """A quantity that a task measures on a split: unit, meaning, and whether a higher value is better."""

    unit: str
    description: str
    higher_is_better: bool = False


# Tags have one description, so a quantity of several tasks is the same one for all of them.
_LOSS = Quantity("", "the minimised loss; on a split without penalties and label smoothing, the KL's weight 1")
_NFE = Quantity("evaluations", "NFE of a batch, all of its solves, mean over batches")
_ACCURACY = Quantity("fraction", "fraction of samples classified correctly", higher_is_better=True)
_NLL = Quantity("nats", "negative log-likelihood per sample; of a series, given its latent state")
_KL = Quantity(
    "nats", "KL divergence of a density from its target, KL(q || p), or of a series' posterior from the prior"
)

# By task: the quantities of its training batches and its splits. Each gives the tags train/NAME, val/NAME, test/NAME
# and, at the end, best/NAME, final/train_NAME, final/val_NAME and final/test_NAME (odebench/record/layout.py).
QUANTITIES: dict[str, dict[str, Quantity]] = {
    "classification": {
        "loss": _LOSS,
        "accuracy": _ACCURACY,
        "nfe": _NFE,
    },
    "density": {
        "loss": _LOSS,
        "nll_nats": _NLL,
        "bits_per_dim": Quantity("bits", "negative log-likelihood per dimension"),
        "kl_nats": _KL,
        "nfe": _NFE,
        "sampling_nfe": Quantity("evaluations", "NFE of one solve that draws samples"),
        "samples_per_s": Quantity("samples/s", "samples drawn per second", higher_is_better=True),
        "trace_std_nats": Quantity("nats", "standard deviation of the log-likelihood over the trace estimator's noise"),
    },
    "time_series": {
        "loss": _LOSS,
        "nll_nats": _NLL,
        "kl_nats": _KL,
        "elbo_nats": Quantity("nats", "evidence lower bound of a series", higher_is_better=True),
        "mse": Quantity("", "mean squared error of the mean prediction, over all observed values"),
        "mse_per_feature": Quantity("", "mean squared error within each series and feature, then averaged over them"),
        "rmse_interpolation": Quantity("", "root mean square error within the window that the model is given"),
        "rmse_extrapolation": Quantity("", "root mean square error after that window"),
        "rate_rmse": Quantity("events / time", "root mean square error of the inferred rate against the known one"),
        "constant_rate_rmse": Quantity("events / time", "root mean square error of each series' mean rate"),
        "accuracy": _ACCURACY,
        "auc": Quantity("fraction", "area under the ROC curve of the label", higher_is_better=True),
        "nfe": _NFE,
        "encoder_nfe": Quantity("evaluations", "NFE of the encoder, all solves of a batch"),
        "decoder_nfe": Quantity("evaluations", "NFE of the decoder's solve"),
    },
}


def higher_is_better(name: str) -> bool:
    """Return whether a higher value of this quantity, such as accuracy, is better."""
    return any(name in of_task and of_task[name].higher_is_better for of_task in QUANTITIES.values())


# The quantities that tell most about a model, the most telling first.
_HEADLINES = ("accuracy", "auc", "bits_per_dim", "kl_nats", "rmse_extrapolation", "mse", "nll_nats", "loss")
_SHORT_NAMES = {
    "auc": "AUC",
    "bits_per_dim": "bits/dim",
    "elbo_nats": "ELBO",
    "kl_nats": "KL",
    "mse": "MSE",
    "mse_per_feature": "MSE per feature",
    "nll_nats": "NLL",
    "rmse_extrapolation": "RMSE beyond",
    "rmse_interpolation": "RMSE within",
}


def headlines(objective: str, values: Mapping[str, float | None]) -> list[str]:
    """Return the objective, then the other measured quantities that tell most about a model.

    values: the measured quantities. Those with the same number as the objective are left out: the loss may be the
    negative ELBO.
    """
    size = abs(values.get(objective) or math.nan)
    return [
        objective,
        *(name for name in _HEADLINES if name in values and name != objective and abs(values[name] or 0.0) != size),
    ]


def short_name(name: str) -> str:
    """Return a quantity's name for a terminal, such as ``KL`` for ``kl_nats``."""
    return _SHORT_NAMES.get(name, name.replace("_", " "))
