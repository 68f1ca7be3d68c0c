"""The cells against their equations, applied to the observations of one series in a plain loop."""

import dataclasses
from functools import partial

import torch
from small_series import TIMES, build, latent_ode, small_batch

from odebench import ode
from odebench.models.series.cells import ODERNNCell
from odebench.models.series.fields import AutonomousField
from odebench.models.series.recurrence import reversed_grid, run_cell

SOLVE = partial(ode.solve, rtol=1e-9, atol=1e-9)
ROW = 1


def observations():
    """Time, values and mask of each observation of one series of the batch."""
    batch = small_batch()
    seen = batch.mask[ROW].any(-1)
    return list(zip(batch.times[seen], batch.values[ROW, seen], batch.mask[ROW, seen].double(), strict=True))


def loop(model, before, after, state, rollout=True):
    """Predictions at TIMES, decoded from before(state, t); after(...) is the state that has taken in an observation.

    After the last observation the predictions are taken in as observations.
    """
    ahead, found = observations(), []
    for t in TIMES:
        while ahead and ahead[0][0] <= t:
            time, x, mask = ahead.pop(0)
            state = after(before(state, time), x, mask, time)
        found.append(model.decoder(before(state, t)["h"]))
        if rollout and not ahead:
            state = after(before(state, t), found[-1], torch.ones(2).double(), t)
    return torch.stack(found)


def test_labels_are_predicted_from_the_state_right_after_the_last_observation():
    batch = small_batch()
    for name in ("gru_d", "rnn_decay"):
        model = build(name)
        decay = model.cell.hidden_decay if name == "gru_d" else model.cell.decay
        alone = batch.mask & (batch.mask.any(-1).cumsum(1) == 1).unsqueeze(-1)  # the first observation of each
        one = dataclasses.replace(batch, mask=alone, values=batch.values.where(alone, 0))
        before = model(one, TIMES, SOLVE).logits
        torch.nn.init.constant_(decay.bias, 3.0)  # there is no decay before it, and none after it
        torch.testing.assert_close(model(one, TIMES, SOLVE).logits, before)


def assert_forecast(model, expected):
    torch.testing.assert_close(model(small_batch(), TIMES, SOLVE).values[0, ROW], expected, rtol=1e-8, atol=1e-8)


def start(width=6):
    zero = torch.zeros((), dtype=torch.float64)
    return {"h": torch.zeros(width).double(), "t": zero}


def test_the_rnn_takes_in_an_observation_with_the_time_to_the_next():
    model = build("rnn")
    w = dict(model.cell.recurrent.named_parameters())

    def before(s, t):
        inputs = torch.cat((s["x"], s["m"], (t - s["t"])[None]))
        h = torch.tanh(w["weight_ih"] @ inputs + w["bias_ih"] + w["weight_hh"] @ s["h"] + w["bias_hh"])
        return s | {"h": h}

    def after(s, x, mask, t):
        return {"h": s["h"], "x": x, "m": mask, "t": t}

    nothing = torch.zeros(2).double()
    assert_forecast(model, loop(model, before, after, start() | {"x": nothing, "m": nothing}))


def test_the_state_of_rnn_decay_decays_exponentially_between_observations():
    model = build("rnn_decay")
    weight, bias = model.cell.decay.weight.squeeze(1), model.cell.decay.bias

    def before(s, t):
        return s | {"h": s["h"] * torch.exp(-(weight * (t - s["t"]) + bias).clamp(min=0))}

    def after(s, x, mask, t):
        return {"h": model.cell.recurrent(torch.cat((x, mask)), s["h"]), "t": t}

    assert_forecast(model, loop(model, before, after, start()))


def test_gru_d_follows_the_equations_of_its_paper():
    model = build("gru_d")
    cell = model.cell

    def before(s, t):
        since = s["since"] + t - s["t"]
        decay = torch.exp(-(cell.hidden_decay.weight @ since + cell.hidden_decay.bias).clamp(min=0))
        return s | {"h": decay * s["h"], "since": since, "t": t}

    def after(s, x, mask, t):
        decay = torch.exp(-(cell.value_decay.weight.squeeze(1) * s["since"] + cell.value_decay.bias).clamp(min=0))
        filled = mask * x + (1 - mask) * (decay * s["x"] + (1 - decay) * cell.means)
        h = cell.recurrent(torch.cat((filled, mask)), s["h"])
        return {"h": h, "x": mask * x + (1 - mask) * s["x"], "since": (1 - mask) * s["since"], "t": t}

    since = torch.zeros(2).double()
    expected = loop(model, before, after, start() | {"x": cell.means, "since": since})
    assert_forecast(model, expected)


def test_ode_rnn_follows_its_field_between_observations():
    model = build("ode_rnn")

    def before(s, t):
        if t == s["t"]:
            return s
        h = SOLVE(model.cell.field, s["h"], torch.stack((s["t"], t))).y[-1]
        return {"h": h, "t": t}

    def after(s, x, mask, t):
        return {"h": model.cell.recurrent(torch.cat((x, mask))[None], s["h"][None])[0], "t": t}

    assert_forecast(model, loop(model, before, after, start(), rollout=False))


def test_the_recurrent_encoder_takes_in_each_observation_with_the_time_to_the_one_before():
    model = latent_ode(encoder="rnn")
    w, h = dict(model.encoder.recurrent.named_parameters()), torch.zeros(6).double()
    before = [0.0, *(t for t, *_ in observations())]
    for earlier, (t, x, mask) in reversed(list(zip(before, observations(), strict=False))):
        inputs = torch.cat((x, mask, (t - earlier)[None]))
        h = w["weight_ih_l0"] @ inputs + w["bias_ih_l0"] + w["weight_hh_l0"] @ h + w["bias_hh_l0"]
        h = torch.tanh(h)
    mean, spread = model.encoder.head(h).chunk(2)
    posterior, _ = model.encoder(small_batch(), SOLVE)
    torch.testing.assert_close(posterior.mean[ROW], mean)
    torch.testing.assert_close(posterior.std[ROW], torch.log1p(spread.exp()))


def test_the_ode_rnn_encoder_runs_backwards_to_time_0():
    model = latent_ode(encoder="ode_rnn")
    cell, h, t = model.encoder.cell, torch.zeros(6).double(), observations()[-1][0]
    for time, x, mask in reversed(observations()):
        if time < t:
            h = SOLVE(cell.field, h, (0.0, float(t - time))).y[-1]
        h, t = cell.recurrent(torch.cat((x, mask))[None], h[None])[0], time
    h = SOLVE(cell.field, h, (0.0, float(t))).y[-1]
    mean, spread = model.encoder.head(h).chunk(2)
    posterior, _ = model.encoder(small_batch(), SOLVE)
    torch.testing.assert_close(posterior.mean[ROW], mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(posterior.std[ROW], torch.log1p(spread.exp()), rtol=1e-8, atol=1e-8)


def final_hidden(solver, step, solve=ode.solve):
    torch.manual_seed(0)
    cell = ODERNNCell(2, 6, AutonomousField(6, 6, 1, "tanh"), 5, solver, step).double()
    grid = reversed_grid(small_batch())
    return run_cell(cell, grid, cell.initial_state(grid.values[:, 0]), grid.times[:, 0], solve).final_state[0]


def test_fixed_steps_of_the_encoder_converge_to_the_solution_with_euler_s_order():
    exact = final_hidden(None, 0.1, SOLVE)
    errors = [(final_hidden("euler", step) - exact).norm().item() for step in (2e-2, 1e-2)]
    assert 1.7 < errors[0] / errors[1] < 2.3


def test_the_gaps_of_the_encoder_can_be_solved_per_sample():
    by_row = final_hidden(None, 0.1, partial(SOLVE, stepping="per_sample"))
    torch.testing.assert_close(by_row, final_hidden(None, 0.1, SOLVE), rtol=1e-7, atol=1e-7)


def test_the_encoder_takes_as_many_solves_as_the_longest_series_has_observations():
    model, batch = latent_ode(encoder="ode_rnn", encoder_solver="euler", encoder_step=0.99), small_batch()
    most = int(batch.mask.any(-1).sum(1).max())
    forecast = model(batch, TIMES, SOLVE)
    assert [stats.nfe for stats in forecast.encoder_stats] == [1] * (most + 1)
    assert len(forecast.decoder_stats) == 1


def test_the_encoder_takes_as_many_fixed_steps_as_the_series_that_needs_the_most():
    step, batch = 0.07, small_batch()
    model = latent_ode(encoder="ode_rnn", encoder_solver="euler", encoder_step=step / 1.5)  # of the span, 1.5
    needed = []
    for seen in batch.mask.any(-1):
        gaps = batch.times[seen].diff(prepend=torch.zeros(1).double())
        needed.append(1 + int((gaps / step).ceil().sum()))  # there is no gap before the first input
    forecast = model(batch, TIMES, SOLVE)
    assert [stats.nfe for stats in forecast.encoder_stats] == [1] * max(needed)
