"""The latent ODE: an encoder, an ODE in latent space, and a ``Decoder``.

``decoder_nfe`` counts the evaluations of this ODE, since the literature counts it as part of the decoder.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from odebench import ode
from odebench.models.augment import SecondOrderField, append_zero_channels
from odebench.models.augmented_state import AugmentedField, zero_integrals
from odebench.models.series.base import SeriesModel, apply_head
from odebench.models.series.cells import ODERNNCell
from odebench.models.series.encoders import ODERNNEncoder, RecurrentEncoder, sample_posterior
from odebench.models.series.fields import AutonomousField
from odebench.models.series.forecast import Forecast
from odebench.models.series.recurrence import ObservedSeries, Solve, SolveRecorder

# Width of the layer between the state of an ODE-RNN and the parameters of the posterior, as published.
HEAD_UNITS = 100


class LatentODE(SeriesModel):
    """Latent ODE: a series is decoded from one solution of an ODE, whose initial state is a random variable.

    Chen et al. 2018, section 5; with encoder ode_rnn, Rubanova et al. 2019, section 3. A batch is solved once, on the
    union of its times. See ``odebench.models.series`` for how the model is called.

    num_features, span: the number D of features, and the last time of the data; series start at time 0.
    target_start: events are predicted from this time on.
    latent_dim: the dimension of the ODE's state. field_units, field_layers, activation: width, number and activation
        of its field's hidden layers.
    augment: the number of further dimensions of the state, which start at 0 (Dupont et al. 2019).
    second_order: whether the field gives the second derivative. The first derivative then starts as a learned map of
        the state, and is not decoded (Norcliffe et al. 2020).
    encoder: "rnn", tanh units with the time gaps as inputs; "gru", gated units, which remember more observations; or
        "ode_rnn", whose state follows an ODE between observations, with field_layers hidden layers of
        encoder_field_units units in its field. All run backwards in time.
    value_unit, gap_unit: rnn and gru divide values and time gaps by these.
    encoder_width: the width of the encoder's hidden state. gate_units, encoder_solver, encoder_step: options of
        ode_rnn, see ``ODERNNCell``; here the step is a fraction of the span.
    heads: see ``SeriesModel.add_heads``; the label is predicted from z0.
    """

    def __init__(
        self,
        num_features: int,
        span: float,
        target_start: float,
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
        value_unit: float,
        gap_unit: float,
        **heads: Any,
    ) -> None:
        super().__init__()
        self.latent_dim, self.span, self.target_start = latent_dim, span, target_start
        if encoder != "ode_rnn":
            kind: Literal["tanh", "gru"] = "tanh" if encoder == "rnn" else "gru"
            sizes = (num_features, encoder_width, latent_dim)
            self.encoder: nn.Module = RecurrentEncoder(*sizes, kind, value_unit, gap_unit)
        else:
            field = AutonomousField(encoder_width, encoder_field_units, field_layers, activation)
            cell = ODERNNCell(num_features, encoder_width, field, gate_units, encoder_solver, encoder_step * span)
            self.encoder = ODERNNEncoder(cell, latent_dim, HEAD_UNITS)
        self._augment, self._dim = augment, latent_dim + augment
        self.velocity = nn.Linear(self._dim, self._dim) if second_order else None
        self.state_dim = 2 * self._dim if second_order else self._dim
        self.field: nn.Module = AutonomousField(self.state_dim, field_units, field_layers, activation, self._dim)
        if second_order:
            self.field = SecondOrderField(self.field)
        self.add_heads(num_features, self._dim, latent_dim, **heads)
        if self.rates is not None:
            self.field = AugmentedField(self.field, [self.rates.total_rate])

    def forward(
        self,
        inputs: ObservedSeries,
        times: Tensor,
        solve: Solve = ode.solve,
        requested: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Forecast:
        """See ``odebench.models.series``."""
        posterior, encoder_stats = self.encoder(inputs, solve)
        z0 = sample_posterior(posterior, noise)
        recorder = SolveRecorder(solve)
        latents, expected_events = self.solve(z0, times, recorder)
        return Forecast(
            values=apply_head(self.decoder, latents, requested),
            encoder_stats=encoder_stats,
            decoder_stats=recorder.stats,
            posterior=posterior,
            latents=latents,
            logits=self.logits(z0),
            log_rates=apply_head(self.rates, latents, requested),
            expected_events=expected_events,
        )

    def solve(self, z0: Tensor, times: Tensor, solve: Solve) -> tuple[Tensor, Tensor | None]:
        """The latent states [S, B, T, L] at times [T] of solutions from z0 [S, B, L] at time 0.

        Also returns the expected number of events from `target_start` to the end of the span [S, B]; None for a model
        without events.
        """
        state = append_zero_channels(z0.flatten(0, 1), self._augment)
        if self.velocity is not None:
            state = torch.cat((state, self.velocity(state)), dim=1)
        ends = [0.0] if self.rates is None else [0.0, self.target_start, self.span]
        grid, index = torch.unique(torch.cat((*(times.new_full((1,), t) for t in ends), times)), return_inverse=True)
        if self.rates is None:
            states, expected = solve(self.field, state, grid).y, None
        else:
            states, integrals = solve(self.field, (state, *zero_integrals(state, 1)), grid).y
            expected = (integrals[index[2]] - integrals[index[1]]).unflatten(0, z0.shape[:2])
        latents = states[index[len(ends) :], :, : self._dim]
        return latents.movedim(0, 1).unflatten(0, z0.shape[:2]), expected
