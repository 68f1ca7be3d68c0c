"""Base class of the series models, with the heads that decode observations, rates of events and a label."""

from torch import Tensor, nn

from odebench.models.series.heads import Decoder, EventRates, classifier


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
        classifier_units: units of each hidden layer of its classifier.
        """
        self.decoder = self.rates = self.classifier = None
        if observations:
            self.decoder = Decoder(width, num_features, decoder_units, noise_std, learn_noise)
        if events:
            self.rates = EventRates(width, num_features, event_units)
        if classify:
            self.classifier = classifier(label_width, classifier_units)

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
    # Indices in place of the mask: each use of a mask would wait for a GPU, and so would those in the backward pass.
    series, columns = requested.nonzero(as_tuple=True)
    if len(series) == requested.numel():
        return head(states)
    outputs = head(states[:, series, columns])
    padded = outputs.new_zeros(*states.shape[:3], outputs.shape[-1])
    padded[:, series, columns] = outputs
    return padded
