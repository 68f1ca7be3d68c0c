"""The latent ODE."""

from typing import Literal

import torch
from torch import Tensor, nn

from odebench import ode
from odebench.models.augment import SecondOrder, augmented
from odebench.models.carried import Carried, zeros
from odebench.models.series.cells import ODECell
from odebench.models.series.decoders import Decoder, classifier
from odebench.models.series.encoders import ODERNNEncoder, RecurrentEncoder, samples
from odebench.models.series.fields import AutonomousField
from odebench.models.series.forecast import Forecast
from odebench.models.series.poisson import EventRates
from odebench.models.series.reading import Counted, Observed, Solve

# Between the state of an ODE-RNN and the parameters of the posterior, as published.
HEAD_UNITS = 100


class LatentODE(nn.Module):
    """A series as the image of one solution of an ODE, whose initial state is a random variable.

    Chen et al. 2018, section 5; with encoder ode_rnn Rubanova et al. 2019, section 3. Its states are solved once, on
    the union of the times of a batch. See ``odebench.models.series`` for how it is called.

    num_features, span: of the data: D, and the times from 0 to which it goes.
    latent_dim: of the ODE's state. field_units, field_layers, activation: of its field's hidden layers.
    augment: further dimensions of the state, zero at first (Dupont et al. 2019). second_order: the field gives the
        second derivative; the first starts as a learned map of the state, which alone is read (Norcliffe et al. 2020).
    encoder: rnn, tanh units and the time gaps as inputs; gru, the same of gated units, which remember many of them;
        or ode_rnn, whose state follows an ODE between observations, its field with layers like that of the latent
        state's but of encoder_field_units. All read backwards.
    value_unit, gap_unit: in which rnn and gru read values and time gaps.
    encoder_width: of the encoder's hidden state. gate_units, encoder_solver, encoder_step: of ode_rnn, see ``ODECell``;
        the step as a share of the span.
    decoder_units, noise_std, learn_noise: see ``Decoder``; observations: whether there is one.
    events: whether the times of observation are a Poisson process of their own, a kind of event for each feature.
    event_units: of its rates' hidden layer.
    classify: whether z0 says a binary label. classifier_units: of each of its hidden layers.
    """

    def __init__(
        self,
        num_features: int,
        span: float,
        latent_dim: int,
        field_units: int,
        field_layers: int,
        activation: str,
        augment: int,
        second_order: bool,
        encoder: Literal["rnn", "gru", "ode_rnn"],
        encoder_width: int,
        encoder_field_units: int,
        gate_units: int,
        encoder_solver: str | None,
        encoder_step: float,
        observations: bool,
        decoder_units: int,
        noise_std: float,
        learn_noise: bool,
        events: bool,
        event_units: int,
        classify: bool,
        classifier_units: int,
        value_unit: float,
        gap_unit: float,
    ) -> None:
        super().__init__()
        self.latent_dim, self.span = latent_dim, span
        if encoder != "ode_rnn":
            kind: Literal["tanh", "gru"] = "tanh" if encoder == "rnn" else "gru"
            self.encoder: nn.Module = RecurrentEncoder(
                num_features, encoder_width, latent_dim, kind, value_unit, gap_unit
            )
        else:
            own_field = AutonomousField(encoder_width, encoder_field_units, field_layers, activation)
            cell = ODECell(num_features, encoder_width, own_field, gate_units, encoder_solver, encoder_step * span)
            self.encoder = ODERNNEncoder(cell, latent_dim, HEAD_UNITS)
        self._augment, self._dim = augment, latent_dim + augment
        self.velocity = nn.Linear(self._dim, self._dim) if second_order else None
        state_dim = 2 * self._dim if second_order else self._dim
        self.field: nn.Module = AutonomousField(state_dim, field_units, field_layers, activation, self._dim)
        if second_order:
            self.field = SecondOrder(self.field)
        self.decoder = self.rates = self.classifier = None
        if observations:
            self.decoder = Decoder(self._dim, num_features, decoder_units, noise_std, learn_noise)
        if events:
            self.rates = EventRates(self._dim, num_features, event_units)
            self.field = Carried(self.field, [self.rates.total])
        if classify:
            self.classifier = classifier(latent_dim, classifier_units)

    @property
    def noise_std(self) -> Tensor | None:
        """Standard deviation of the observations [D]; None without such."""
        return None if self.decoder is None else self.decoder.noise_std

    def forward(
        self,
        inputs: Observed,
        times: Tensor,
        solve: Solve = ode.solve,
        wanted: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Forecast:
        """See ``odebench.models.series``."""
        posterior, encoder_stats = self.encoder(inputs, solve)
        z0 = samples(posterior, noise)
        counted = Counted(solve)
        latents, expected_events = self.solve(z0, times, counted)
        return Forecast(
            values=None if self.decoder is None else read_wanted(self.decoder, latents, wanted),
            encoder=encoder_stats,
            decoder=counted.stats,
            posterior=posterior,
            latents=latents,
            logits=None if self.classifier is None else self.classifier(z0).squeeze(-1),
            log_rates=None if self.rates is None else read_wanted(self.rates, latents, wanted),
            expected_events=expected_events,
        )

    def solve(self, z0: Tensor, times: Tensor, solve: Solve) -> tuple[Tensor, Tensor | None]:
        """The latent states [S, B, T, L] at times [T] of solutions from z0 [S, B, L] at time 0; the events expected
        over the whole span [S, B], where there are events."""
        state = augmented(z0.flatten(0, 1), self._augment)
        if self.velocity is not None:
            state = torch.cat((state, self.velocity(state)), dim=1)
        ends = times.new_tensor([0.0] if self.rates is None else [0.0, self.span])
        grid, places = torch.unique(torch.cat((ends, times)), return_inverse=True)
        if self.rates is None:
            states, expected = solve(self.field, state, grid).y, None
        else:
            states, integrals = solve(self.field, (state, *zeros(state, 1)), grid).y
            expected = integrals[places[1]].unflatten(0, z0.shape[:2])
        latents = states[places[len(ends) :], :, : self._dim]
        return latents.movedim(0, 1).unflatten(0, z0.shape[:2]), expected


def read_wanted(net: nn.Module, latents: Tensor, wanted: Tensor | None) -> Tensor:
    """net of latents [S, B, T, L] where they are wanted [B, T], zeros elsewhere: on the union of the times of many
    series that is almost everywhere."""
    if wanted is None or bool(wanted.all()):
        return net(latents)
    found = net(latents[:, wanted])
    whole = found.new_zeros(*latents.shape[:3], found.shape[-1])
    whole[:, wanted] = found
    return whole
