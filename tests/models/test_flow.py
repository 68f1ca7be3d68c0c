"""Flows of ODEs: likelihoods against closed forms, traces, times and paths."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

from odebench import ode
from odebench.errors import UsageError
from odebench.models import flow as flow_module
from odebench.models.concatsquash import ConcatSquashMLP
from odebench.models.flow import Flow, ODEBlock, ODEFlow, draw_noise

EXACT = partial(ode.solve, rtol=1e-9, atol=1e-9)
STEPS = partial(ode.solve, method="rk4", steps=6)


class Linear(nn.Module):
    """dz/dt = A z."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, t, z):
        return z @ self.a.T


def squash(dims=(8,), size=2):
    """A field with random weights, large enough to be nonlinear."""
    field = ConcatSquashMLP(size, dims, "tanh").double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(2)
    return field


def one_block(**options):
    return ODEFlow((2,), [ODEBlock(squash(), (2,), 0.7, **options)], 1.0).double()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("gradient", ["backprop", "adjoint"])
def test_the_likelihood_of_a_linear_field_is_the_closed_form(gradient):
    a, x, time = 0.8 * torch.randn(3, 3).double(), torch.randn(5, 3).double(), 1.3
    flow = Flow((3,), [ODEBlock(Linear(a), (3,), time)], base_variance=0.6)
    log_prob, (stats,) = flow.log_prob(x, partial(EXACT, gradient=gradient))
    matrix = a.clone().requires_grad_()
    back = torch.linalg.matrix_exp(-time * matrix)
    base = torch.distributions.MultivariateNormal(torch.zeros(3).double(), 0.6 * torch.eye(3).double())
    expected = base.log_prob(x @ back.T) - time * matrix.trace()
    torch.testing.assert_close(log_prob, expected, rtol=1e-8, atol=1e-8)
    log_prob.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(next(flow.parameters()).grad, matrix.grad, rtol=1e-6, atol=1e-6)
    assert stats.nfe > 0


def test_to_base_and_from_base_are_inverse_and_so_are_their_determinants():
    flow = ODEFlow((2,), [ODEBlock(squash(), (2,), 0.7), ODEBlock(squash(), (2,), 0.4)], 1.0)
    x = torch.randn(6, 2).double()
    z, to_base, solves = flow.to_base(x, EXACT)
    back, from_base, _ = flow.from_base(z, EXACT)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(from_base, -to_base, rtol=0, atol=1e-7)
    assert len(solves) == 2


def test_all_rademacher_signs_average_to_the_exact_trace(monkeypatch):
    flow, x = one_block(trace="hutchinson"), torch.randn(6, 2).double()
    estimates = []
    for signs in itertools.product((-1.0, 1.0), repeat=2):
        noise = torch.tensor(signs).double().expand_as(x)
        monkeypatch.setattr(flow_module, "draw_noise", lambda kind, like, noise=noise: noise)
        estimates.append(flow.to_base(x, STEPS)[1])
    exact = flow.to_base(x, STEPS, trace="exact")[1]
    assert (estimates[1] - exact).abs().max() > 1e-3
    torch.testing.assert_close(torch.stack(estimates).mean(0), exact, rtol=0, atol=1e-12)


def test_noise_is_drawn_once_for_each_solve(monkeypatch):
    drawn = []
    monkeypatch.setattr(flow_module, "draw_noise", lambda kind, like: drawn.append(like) or draw_noise(kind, like))
    _, (stats,) = one_block(trace="hutchinson").log_prob(torch.randn(6, 2).double(), STEPS)
    assert (len(drawn), stats.nfe) == (1, 24)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_noise_of_a_seed_is_the_same_in_every_dtype(kind):
    drawn = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        drawn.append(draw_noise(kind, torch.empty(64, 2, dtype=dtype)))
    assert drawn[1].dtype == torch.float64
    assert torch.equal(drawn[0].double(), drawn[1])


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_noise_has_mean_zero_and_the_unit_matrix_as_covariance(kind):
    noise = draw_noise(kind, torch.empty(200_000, 2))
    torch.testing.assert_close(noise.mean(0), torch.zeros(2), rtol=0, atol=0.01)
    torch.testing.assert_close(noise.T @ noise / len(noise), torch.eye(2), rtol=0, atol=0.02)
    assert (kind == "rademacher") == bool((noise.abs() == 1).all())


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_per_sample_stepping_keeps_each_rows_likelihood_and_noise(trace):
    flow, x = one_block(), torch.randn(6, 2).double()
    found = []
    for solve in (EXACT, partial(EXACT, stepping="per_sample")):
        torch.manual_seed(1)
        found.append(flow.log_prob(x, solve, trace)[0])
    torch.testing.assert_close(*found, rtol=0, atol=1e-7)


@pytest.mark.parametrize("gradient", ["backprop", "adjoint"])
@pytest.mark.parametrize("way", ["to_base", "from_base"])
def test_a_trained_end_time_has_the_gradient_of_finite_differences(way, gradient):
    flow, x = one_block(train_time=True), torch.randn(6, 2).double()
    (block,) = flow.transforms

    def loss():
        moved, log_det, _ = getattr(flow, way)(x, partial(EXACT, gradient=gradient))
        return (moved.square().sum(1) + log_det).sum()

    loss().backward()
    step, values = 1e-4, []
    for shift in (step, -step):
        with torch.no_grad():
            block.log_time += shift
            values.append(loss())
            block.log_time -= shift
    assert block.log_time.grad.item() == pytest.approx((values[0] - values[1]).item() / (2 * step), rel=1e-5)


def test_the_end_time_is_a_parameter_only_where_it_is_trained():
    fixed, trained = one_block(), one_block(train_time=True)
    assert len(list(trained.parameters())) == len(list(fixed.parameters())) + 1
    assert fixed.end_time == 0.7
    assert trained.end_time == pytest.approx(0.7)


def test_the_path_goes_from_the_base_to_the_data_by_the_velocity():
    flow = ODEFlow((2,), [ODEBlock(squash(), (2,), 0.7), ODEBlock(squash(), (2,), 0.4)], 1.0)
    z = torch.randn(6, 2).double()
    step = 1e-3
    times = [0.0, 0.2 - step, 0.2, 0.2 + step, 0.8 - step, 0.8, 0.8 + step, flow.end_time]
    with torch.no_grad():
        path, solves = flow.path(z, times, EXACT)
        assert len(solves) == 2
        torch.testing.assert_close(path[0], z)
        torch.testing.assert_close(path[-1], flow.from_base(z, EXACT)[0], rtol=0, atol=1e-7)
        for i in (2, 5):
            velocity = flow.velocity(torch.tensor(times[i]).double(), path[i])
            torch.testing.assert_close((path[i + 1] - path[i - 1]) / (2 * step), velocity, rtol=1e-4, atol=1e-4)


def test_a_vector_of_times_gives_the_velocity_row_by_row():
    flow = ODEFlow((2,), [ODEBlock(squash(), (2,), 0.7), ODEBlock(squash(), (2,), 0.4)], 1.0)
    x, t = torch.randn(6, 2).double(), torch.linspace(0, 1.1, 6).double()
    rows = [flow.velocity(time, row[None])[0] for time, row in zip(t, x, strict=True)]
    torch.testing.assert_close(flow.velocity(t, x), torch.stack(rows))


def test_a_path_that_ends_early_solves_no_further():
    flow = ODEFlow((2,), [ODEBlock(squash(), (2,), 0.7), ODEBlock(squash(), (2,), 0.4)], 1.0)
    states, solves = flow.path(torch.randn(6, 2).double(), [0.0, 0.4], STEPS)
    assert (len(states), len(solves)) == (2, 1)


def test_the_base_is_the_gaussian_of_its_variance():
    flow = Flow((2,), [ODEBlock(squash(), (2,), 0.7)], base_variance=0.1)
    z = flow.base_sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.T @ z / len(z), 0.1 * torch.eye(2).double(), rtol=0, atol=4e-3)
    expected = torch.distributions.Normal(0.0, math.sqrt(0.1)).log_prob(z).sum(1)
    torch.testing.assert_close(flow.base_log_prob(z), expected)
    assert torch.equal(z, flow.base_sample(20_000, torch.Generator().manual_seed(0)))


def test_samples_are_the_images_of_base_samples():
    flow = one_block()
    samples, _ = flow.sample(6, STEPS, torch.Generator().manual_seed(0))
    z = flow.base_sample(6, torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples, flow.from_base(z, STEPS)[0])


def test_a_copy_does_not_share_its_field_and_has_each_parameter_once():
    flow, x = one_block(), torch.randn(6, 2).double()
    before, copied = flow.log_prob(x, STEPS)[0], copy.deepcopy(flow)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(flow.log_prob(x, STEPS)[0], before)
    torch.testing.assert_close(copied.log_prob(x, STEPS)[0], copied.base_log_prob(x))
    assert flow.state_dict().keys() == dict(flow.named_parameters()).keys()


def test_an_exact_trace_of_images_raises_an_error_with_its_cost():
    with pytest.raises(UsageError, match=r"model.trace=exact.* 784 vector-Jacobian.*model.trace=hutchinson"):
        ODEBlock(nn.Identity(), (1, 28, 28), 1.0, trace="exact")
    block = ODEBlock(nn.Identity(), (1, 28, 28), 1.0, trace="hutchinson")
    with pytest.raises(UsageError, match=r"model.trace=exact"):
        block.to_base(torch.rand(2, 1, 28, 28), ode.solve, "exact")


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.BatchNorm1d(2)], ids=["dropout", "batch norm"])
def test_a_field_with_random_layers_raises_an_error(layer):
    with pytest.raises(UsageError, match=rf"layer 1 \({type(layer).__name__}\) changes at every evaluation"):
        ODEBlock(nn.Sequential(nn.Linear(2, 2), layer), (2,), 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_the_gpu_trains_and_samples_as_the_cpu_does(trace):
    flow, x = one_block(train_time=True, trace=trace), torch.ones(6, 2).double()
    gradients, samples = [], []
    for device in ("cpu", "cuda"):
        flow.to(device).zero_grad()
        flow.log_prob(x.to(device), EXACT)[0].sum().backward()
        gradients.append(flow.transforms[0].log_time.grad.cpu())
        samples.append(flow.sample(6, EXACT, torch.Generator().manual_seed(0))[0].cpu())
    torch.testing.assert_close(*samples, rtol=0, atol=1e-6)
    if trace == "exact":
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
