"""Base class of the series models, with the heads that decode observations, rates of events and a label."""

import math

import torch
from torch import Tensor, nn

from odebench.models.augmented_state import FieldEvaluation
from odebench.models.series.fields import mlp


class Decoder(nn.Module):
    """Gaussian observations: means by a network with one hidden layer (units = 0: a linear map), and a noise level.

    noise_std: standard deviation of the noise; with learn_noise the initial value of a parameter for each feature.
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
        """Means [..., D] from states [..., width]."""
        return self.net(states)


class EventRates(nn.Module):
    """The rate of each kind of event, lambda(z) = exp(net(z)), one hidden layer (Chen et al. 2018, section 5).

    An inhomogeneous Poisson process has log L = sum over events of log lambda(t_i) - integral of lambda over the span
    (Daley & Vere-Jones 2003, proposition 7.2.III); the solver integrates lambda together with the state.

    dim: the rates depend on the first dim numbers of the state.
    """

    def __init__(self, dim: int, num_kinds: int, units: int) -> None:
        super().__init__()
        self.dim = dim
        self.net = mlp(dim, num_kinds, units, 1, "tanh")

    def forward(self, z: Tensor) -> Tensor:
        """Logarithms of the rates [..., E] at states z [..., dim]."""
        return self.net(z)

    def total_rate(self, evaluation: FieldEvaluation) -> Tensor:
        """The rate of events of any kind [B], an integrand for ``AugmentedField``."""
        return self(evaluation.z[..., : self.dim]).exp().sum(-1)


class SeriesModel(nn.Module):
    """A model of irregular series; see ``odebench.models.series`` for the call.

    Subclasses call ``add_heads`` at the end of their ``__init__``.

    decoder: of Gaussian observations, or None. rates: of events, or None. classifier: of a label, or None.
    feeds_back_predictions: whether the model takes its own predictions as input, so that each depends on the earlier
        prediction times.
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

        num_features: D, of the data. width: of the states that the decoder and the rates take. label_width: of the
        state that the classifier takes. decoder_units, noise_std, learn_noise: see ``Decoder``; observations: whether
        there is one. events: whether the observation times are modelled as a Poisson process, with one kind of event
        for each feature; event_units: hidden units of its rates. classify: whether there is a binary label;
        classifier_units: units of each of the two hidden layers of its classifier (Rubanova et al. 2019).
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
        """Logits of the label [S, B] from states [S, B, label_width]; None without a classifier."""
        return None if self.classifier is None else self.classifier(states).squeeze(-1)


def apply_head(head: nn.Module | None, states: Tensor, requested: Tensor | None) -> Tensor | None:
    """The head's output for states [S, B, T, width] where requested [B, T], zeros elsewhere; None without a head.

    On the union of the times of many series few outputs are requested, so the head skips the others.
    """
    if head is None:
        return None
    if requested is None:
        return head(states)
    # Indices, not the mask: each use of a mask waits for the GPU, also in the backward pass.
    series, columns = requested.nonzero(as_tuple=True)
    if len(series) == requested.numel():
        return head(states)
    outputs = head(states[:, series, columns])
    padded = outputs.new_zeros(*states.shape[:3], outputs.shape[-1])
    padded[:, series, columns] = outputs
    return padded
