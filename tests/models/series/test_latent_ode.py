"""The latent ODE: its solves, its Poisson process, and its gradients."""

from functools import partial

import pytest
import torch
from scipy.integrate import simpson
from small_series import TIMES, latent_ode, noise_for, small_batch
from torch import nn

from odebench import ode

SPAN = 1.5
SOLVE = partial(ode.solve, rtol=1e-9, atol=1e-9)


def test_one_solve_serves_all_samples_series_and_times():
    model = latent_ode()
    forecast = model(small_batch(), TIMES, SOLVE, noise=noise_for(model, num_samples=3))
    assert forecast.values.shape == (3, 4, len(TIMES), 2)
    assert len(forecast.decoder_stats) == 1
    for sample, series in ((0, 2), (2, 1)):
        alone = SOLVE(model.field.field, forecast.latents[sample, series, 0], TIMES).y
        torch.testing.assert_close(forecast.latents[sample, series], alone, rtol=1e-7, atol=1e-7)


def test_on_the_union_of_times_per_sample_stepping_gives_the_same_result():
    def found(**stepping):
        model = latent_ode()
        forecast = model(small_batch(), TIMES, partial(SOLVE, **stepping), noise=noise_for(model))
        loss = forecast.values.square().sum() + forecast.log_rates.sum() + forecast.expected_events.sum()
        parameters = [p for p in model.parameters() if p.requires_grad]
        return forecast, torch.autograd.grad(loss, parameters, allow_unused=True)

    (shared, expected), (per_sample, gradients) = found(), found(stepping="per_sample")
    for name in ("values", "log_rates", "expected_events"):
        torch.testing.assert_close(getattr(per_sample, name), getattr(shared, name), rtol=1e-7, atol=1e-7)
    for one, other in zip(gradients, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_without_noise_the_state_starts_at_the_posterior_s_mean():
    model = latent_ode()
    forecast = model(small_batch(), TIMES, SOLVE)
    torch.testing.assert_close(forecast.latents[0, :, 0], forecast.posterior.mean)
    noise = noise_for(model)
    drawn = model(small_batch(), TIMES, SOLVE, noise=noise).latents[:, :, 0]
    torch.testing.assert_close(drawn, forecast.posterior.mean + noise * forecast.posterior.std)


class LinearLogRate(nn.Module):
    """log(1 + z), one kind of event."""

    def forward(self, z):
        return torch.log1p(z[..., :1])


def with_clock(model):
    """A model whose first latent number is the time."""

    class Clock(nn.Module):
        def forward(self, t, z):
            return torch.ones_like(z)

    model.field.field = Clock()
    nn.init.zeros_(model.encoder.head.weight)
    nn.init.zeros_(model.encoder.head.bias)
    return model


def test_the_integral_of_a_constant_rate_is_rate_times_span():
    model = latent_ode(events=True)
    nn.init.zeros_(model.rates.net[-1].weight)
    nn.init.constant_(model.rates.net[-1].bias, torch.tensor(3.0).log().item())
    forecast = model(small_batch(), TIMES[:3], SOLVE)
    torch.testing.assert_close(forecast.expected_events, torch.full((1, 4), 2 * 3.0 * SPAN).double())


def test_the_integral_of_a_linear_rate_is_its_closed_form():
    model = with_clock(latent_ode(events=True))
    model.rates.net = LinearLogRate()
    forecast = model(small_batch(), TIMES, SOLVE)
    torch.testing.assert_close(forecast.log_rates[0, 0, :, 0].exp(), 1 + TIMES)
    torch.testing.assert_close(forecast.expected_events, torch.full((1, 4), SPAN + SPAN**2 / 2).double())
    model.target_start = SPAN / 3  # only events from there on are targets
    later = model(small_batch(), TIMES, SOLVE)
    assert torch.equal(later.log_rates, forecast.log_rates)
    until = SPAN / 3 + SPAN**2 / 18
    torch.testing.assert_close(later.expected_events, forecast.expected_events - until)


@pytest.mark.parametrize("second_order", [False, True])
def test_the_integral_equals_a_quadrature_of_the_rates(second_order):
    model = latent_ode(second_order=second_order)
    times = torch.linspace(0, SPAN, 401, dtype=torch.float64)
    forecast = model(small_batch(), times, SOLVE, noise=noise_for(model))
    rates = forecast.log_rates.exp().sum(-1).detach().numpy()
    expected = torch.from_numpy(simpson(rates, x=times.numpy()))
    torch.testing.assert_close(forecast.expected_events.detach(), expected, rtol=1e-7, atol=1e-7)


def gradients(mode, **solver):
    model = latent_ode(encoder="ode_rnn")
    forecast = model(small_batch(), TIMES, partial(ode.solve, gradient=mode, **solver), noise=noise_for(model))
    (forecast.values.square().sum() + forecast.log_rates.sum() + forecast.expected_events.sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_modes_agree():
    exact = gradients("backprop", rtol=1e-5, atol=1e-5)
    replayed = gradients("checkpoint", rtol=1e-5, atol=1e-5)
    continuous = gradients("adjoint", rtol=1e-7, atol=1e-7)
    assert any(name.startswith("encoder.cell.field") for name in exact)
    for name, gradient in exact.items():
        torch.testing.assert_close(replayed[name], gradient, rtol=1e-9, atol=1e-10, msg=name)
        torch.testing.assert_close(continuous[name], gradient, rtol=1e-3, atol=1e-3, msg=name)


def test_augmented_dimensions_start_at_zero_and_are_decoded():
    model = latent_ode(augment=2)
    latents = model(small_batch(), TIMES, SOLVE).latents
    assert latents.shape[-1] == 5
    assert torch.equal(latents[:, :, 0, 3:], torch.zeros(1, 4, 2).double())
    assert latents[:, :, 1:, 3:].abs().min() > 0


def test_the_first_derivative_of_a_second_order_ode_starts_as_a_map_of_the_state():
    model, step = latent_ode(second_order=True), 1e-6
    times = torch.tensor([0.0, step], dtype=torch.float64)
    before, after = model(small_batch(), times, SOLVE).latents[0].unbind(1)
    torch.testing.assert_close((after - before) / step, model.velocity(before), rtol=1e-4, atol=1e-4)


def test_a_model_of_events_alone_predicts_no_values():
    model = latent_ode(observations=False)
    forecast = model(small_batch(), TIMES, SOLVE)
    assert forecast.values is None
    assert model.noise_std is None
    assert forecast.log_rates.shape == (1, 4, len(TIMES), 2)


def test_noise_that_is_not_learnt_is_no_parameter():
    for learn in (False, True):
        decoder = latent_ode(learn_noise=learn).decoder
        assert decoder.log_noise_std.requires_grad == learn
        torch.testing.assert_close(decoder.noise_std, torch.full((2,), 0.1).double())
