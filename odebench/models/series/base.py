"""Base class of the series models, and the heads that decode observations, rates of events and a label."""

import math

import torch
from torch import Tensor, nn

from odebench.models.augmented_state import FieldEvaluation
from odebench.models.series.fields import mlp


class Decoder(nn.Module):
    """A decoder of Gaussian observations: a network with one hidden layer gives their means.

    units: the number of hidden units; 0 for a linear map. noise_std: the standard deviation of the noise; with
    learn_noise, the initial value of one parameter for each feature.
    """

    def __init__(self, width: int, num_features: int, units: int, noise_std: float, learn_noise: bool) -> None:
        super().__init__()
        self.net = mlp(width, num_features, units, min(units, 1), "relu")
        log_std = torch.full((num_features,), math.log(noise_std))
        self.log_noise_std = nn.Parameter(log_std, requires_grad=learn_noise)

    @property
    def noise_std(self) -> Tensor:
        """Standard deviation of the noise [D]."""
        return self.log_noise_std.exp()

    def forward(self, states: Tensor) -> Tensor:
        """Map states [..., width] to means [..., D]."""
        return self.net(states)


class EventRates(nn.Module):
    """The rate of each kind of event, lambda(z) = exp(net(z)), with one hidden layer (Chen et al. 2018, section 5).

    The log-likelihood of an inhomogeneous Poisson process is the sum of log lambda(t_i) over the events, minus the
    integral of lambda over the span (Daley & Vere-Jones 2003, proposition 7.2.III). The solver integrates lambda
    together with the state.

    dim: the rates depend only on the first dim components of the state.
    """

    def __init__(self, dim: int, num_kinds: int, units: int) -> None:
        super().__init__()
        self.dim = dim
        self.net = mlp(dim, num_kinds, units, 1, "tanh")

    def forward(self, z: Tensor) -> Tensor:
        """Return the logarithms of the E rates [..., E] at states z [..., dim]."""
        return self.net(z)

    def total_rate(self, evaluation: FieldEvaluation) -> Tensor:
        """The rate of events of any kind [B], an integrand for ``AugmentedField``."""
        return self(evaluation.z[..., : self.dim]).exp().sum(-1)


class SeriesModel(nn.Module):
    """Base class of the models of irregular series; see ``odebench.models.series`` for how a model is called.

    Subclasses call ``add_heads`` at the end of their ``__init__``.

    decoder: the decoder of Gaussian observations, or None. rates: the rates of events, or None. classifier: the network
        that predicts the label, or None.
    feeds_back_predictions: whether the model takes its own predictions as input, so that each prediction depends on the
        earlier prediction times.
    """

    feeds_back_predictions = False

    decoder: Decoder | None
    rates: EventRates | None
    classifier: nn.Sequential | None

    def add_heads(
        self,
        num_features: int,
        width: int,
        label_width: int,
        decoder_units: int,
        noise_std: float,
        learn_noise: bool,
        classify: bool,
        classifier_units: int,
        observations: bool = True,
        events: bool = False,
        event_units: int = 1,
    ) -> None:
        """Create the heads.

        num_features: the number D of features in the data. width: the width of the states that the decoder and the
        rates take. label_width: the width of the state that the classifier takes. decoder_units, noise_std,
        learn_noise: see ``Decoder``. observations: whether there is a decoder. events: whether the observation times
        are modelled as a Poisson process, with one kind of event for each feature. event_units: the number of hidden
        units of the rates. classify: whether there is a binary label. classifier_units: the width of the classifier's
        two hidden layers (Rubanova et al. 2019).
        """
        self.decoder = self.rates = self.classifier = None
        if observations:
            self.decoder = Decoder(width, num_features, decoder_units, noise_std, learn_noise)
        if events:
            self.rates = EventRates(width, num_features, event_units)
        if classify:
            self.classifier = mlp(label_width, 1, classifier_units, 2, "relu")

    @property
    def noise_std(self) -> Tensor | None:
        """Standard deviation of the observation noise [D]; None without a decoder."""
        return None if self.decoder is None else self.decoder.noise_std

    def logits(self, states: Tensor) -> Tensor | None:
        """Map states [S, B, label_width] to logits of the label [S, B]; None without a classifier."""
        return None if self.classifier is None else self.classifier(states).squeeze(-1)


def apply_head(head: nn.Module | None, states: Tensor, requested: Tensor | None) -> Tensor | None:
    """Apply a head to states [S, B, T, width] where requested [B, T] is True; zeros elsewhere. None without a head.

    On the union of the times of many series only few outputs are requested, so skipping the others saves time.
    """
    if head is None:
        return None
    if requested is None:
        return head(states)
    # Indices instead of the mask: each use of a mask waits for the GPU, also in the backward pass.
    series, columns = requested.nonzero(as_tuple=True)
    if len(series) == requested.numel():
        return head(states)
    outputs = head(states[:, series, columns])
    padded = outputs.new_zeros(*states.shape[:3], outputs.shape[-1])
    padded[:, series, columns] = outputs
    return padded
