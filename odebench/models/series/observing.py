"""What is read off the states of a model: observations, rates of events, and a label."""

from torch import Tensor, nn

from odebench.models.series.decoders import Decoder, classifier
from odebench.models.series.poisson import EventRates


class Observing(nn.Module):
    """A model whose states are observed, by heads that all models share.

    ``add_heads`` comes last in a model's ``__init__``.

    decoder: of Gaussian observations; None where there are none. rates: of events, or None. classifier: or None.
    reads_itself: whether it reads its own predictions, so that each depends on the times asked for before.
    """

    reads_itself = False

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
        """Make the heads.

        num_features: D, of the data. width: of the states that values and rates are read off. label_width: of the state
        that says the label. decoder_units, noise_std, learn_noise: see ``Decoder``; observations: whether there is one.
        events: whether the times of observation are a Poisson process of their own, a kind of event for each feature;
        event_units: of its rates' hidden layer. classify: whether there is a binary label; classifier_units: of each of
        its hidden layers.
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
        """Standard deviation of the observations [D]; None without such."""
        return None if self.decoder is None else self.decoder.noise_std

    def logits(self, states: Tensor) -> Tensor | None:
        """Of the label [S, B] from states [S, B, label_width]; None without one."""
        return None if self.classifier is None else self.classifier(states).squeeze(-1)


def read_wanted(head: nn.Module | None, states: Tensor, wanted: Tensor | None) -> Tensor | None:
    """What a head says of states [S, B, T, width] where they are wanted [B, T], zeros elsewhere: on the union of the
    times of many series that is almost everywhere. None without a head."""
    if head is None:
        return None
    if wanted is None or bool(wanted.all()):
        return head(states)
    found = head(states[:, wanted])
    whole = found.new_zeros(*states.shape[:3], found.shape[-1])
    whole[:, wanted] = found
    return whole
