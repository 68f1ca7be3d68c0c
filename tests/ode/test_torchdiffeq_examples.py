"""Small versions of typical uses of torchdiffeq, with one import line changed.

After the examples that come with torchdiffeq and with Chen, Rubanova, Bettencourt & Duvenaud 2018 and Chen, Amos &
Nickel 2021: each trains some steps, and its loss falls.
"""

import math

import pytest
import torch
from torch import nn

from odebench import odeint as odeint_backprop
from odebench import odeint_adjoint as odeint
from odebench import odeint_event

INTERFACES = pytest.mark.parametrize("odeint", [odeint, odeint_backprop], ids=["adjoint", "backprop"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def train(parameters, loss_of, steps, lr):
    """The losses of some steps of Adam."""
    optimizer = torch.optim.Adam(parameters, lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Spiral(nn.Module):
    """dy/dt = A y^3, learned by a network of y^3."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        for layer in self.net[::2]:
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.zeros_(layer.bias)

    def forward(self, t, y):
        return self.net(y**3)


@INTERFACES
@pytest.mark.slow
def test_spiral(odeint):
    """Batches of short pieces of one trajectory, and the whole of it at the end."""
    true_a = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    true_y0, t = torch.tensor([[2.0, 0.0]]), torch.linspace(0.0, 5.0, 200)
    with torch.no_grad():
        true_y = odeint(lambda t, y: y**3 @ true_a, true_y0, t, method="dopri5", rtol=1e-6, atol=1e-6)

    func = Spiral()

    def loss_of():
        start = torch.randint(0, 190, (20,))
        batch_y = torch.stack([true_y[start + i] for i in range(8)])
        return (odeint(func, true_y[start], t[:8], rtol=1e-4, atol=1e-5) - batch_y).abs().mean()

    losses = train(func.parameters(), loss_of, 20, 3e-2)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    with torch.no_grad():
        assert odeint(func, true_y0, t, rtol=1e-5).shape == true_y.shape


@pytest.mark.slow
def test_latent_ode():
    """An encoder of irregular observations backward in time, an ODE of the latent state, a decoder."""

    class Latent(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 12), nn.ELU(), nn.Linear(12, 3))
            self.nfe = 0

        def forward(self, t, x):
            self.nfe += 1
            return self.net(x)

    func, encoder, decoder = Latent(), nn.GRU(2, 12, batch_first=True), nn.Linear(3, 2)
    head = nn.Linear(12, 6)
    t = torch.cat([torch.zeros(1), torch.rand(14).sort().values.clamp_min(1e-3) * 3])
    phase = torch.rand(16, 1) * 2 * math.pi
    seen = torch.stack([torch.cos(t + phase), torch.sin(t + phase)], -1) + 0.05 * torch.randn(16, 15, 2)

    def loss_of():
        _, hidden = encoder(seen.flip(1))
        mean, log_var = head(hidden[0]).chunk(2, 1)
        z0 = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
        z = odeint(func, z0, t, rtol=1e-4, atol=1e-4).permute(1, 0, 2)
        nll = 0.5 * ((decoder(z) - seen) ** 2 / 0.3**2).sum((1, 2)).mean()
        kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1).mean()
        return nll + 0.1 * kl

    parameters = [p for part in (func, encoder, decoder, head) for p in part.parameters()]
    losses = train(parameters, loss_of, 15, 3e-2)
    assert losses[-1] < 0.5 * losses[0]
    assert func.nfe > 0


@pytest.mark.slow
def test_continuous_normalizing_flow():
    """A tuple of samples, log-densities and energies, backward in time with adjoint options; rings become Gaussian."""

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))

        def forward(self, t, states):
            z = states[0]
            with torch.set_grad_enabled(True):
                z = z.requires_grad_(True)
                dz = self.net(torch.cat([z, t.expand(len(z), 1)], 1))
                trace = sum(torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
            return dz, -trace.view(len(z), 1), (dz**2).sum(1, keepdim=True)

    func = Flow()
    angle = torch.rand(64) * 2 * math.pi
    x = (1.5 + 0.1 * torch.randn(64, 1)) * torch.stack([angle.cos(), angle.sin()], 1)
    base = torch.distributions.MultivariateNormal(torch.zeros(2), 0.2 * torch.eye(2))

    def loss_of():
        zero = torch.zeros(64, 1)
        z, change, energy = odeint(
            func,
            (x, zero, zero),
            torch.tensor([1.0, 0.0]),
            atol=1e-5,
            rtol=1e-5,
            method="dopri5",
            adjoint_options={"norm": "seminorm"},
        )
        return -(base.log_prob(z[-1]) - change[-1].flatten()).mean() + 1e-3 * energy[-1].abs().mean()

    losses = train(func.parameters(), loss_of, 20, 2e-2)
    assert losses[-1] < losses[0] - 1


class BouncingBall(nn.Module):
    """Height and speed between bounces; gravity, friction and the bounce are learned."""

    def __init__(self, gravity, bounce):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(gravity))
        self.bounce = nn.Parameter(torch.tensor(bounce))
        self.t0 = nn.Parameter(torch.tensor(0.0))
        self.start = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, t, state):
        height, speed, radius = state
        return speed, -self.gravity.expand_as(height), torch.zeros_like(radius)

    def event_fn(self, t, state):
        return state[0] - state[2]

    def bounce_times(self, count, odeint_interface):
        height, speed = self.start[:1], self.start[1:]
        state, t, times = (height, speed, torch.full_like(height, 0.05)), self.t0, []
        for _ in range(count):
            t, solution = odeint_event(
                self,
                state,
                t,
                event_fn=self.event_fn,
                reverse_time=False,
                odeint_interface=odeint_interface,
                atol=1e-6,
                rtol=1e-6,
            )
            height, speed, radius = (part[-1] for part in solution)
            # A little above the ground, so that it does not count as the next event.
            state = (height + 1e-7, -speed * self.bounce, radius)
            times.append(t)
        return torch.stack(times)


@INTERFACES
def test_bouncing_ball(odeint):
    """Learn from when it bounced, in float64; the time of a bounce depends on all before it."""
    with torch.no_grad():
        wanted = BouncingBall(9.8, 0.9).double().bounce_times(3, odeint)
    fall = math.sqrt(2 * 0.95 / 9.8)
    assert wanted.tolist() == pytest.approx([fall, fall * 2.8, fall * 4.42], rel=1e-3)
    ball = BouncingBall(8.0, 0.6).double()
    learned = [ball.gravity, ball.bounce]
    losses = train(learned, lambda: ((ball.bounce_times(3, odeint) - wanted) ** 2).sum(), 30, 0.05)
    assert losses[-1] < 0.1 * losses[0]
    assert ball.t0.grad is not None
    assert ball.start.grad.isfinite().all()


def test_when_to_stop():
    """A target speed is reached by learning at which level to stop: a parameter of the event alone."""
    level = nn.Parameter(torch.tensor(0.5))
    params = (level,)

    def loss_of():
        t, y = odeint_event(
            lambda t, y: -y,
            torch.tensor([2.0]),
            torch.tensor(0.0),
            event_fn=lambda t, y: y - level,
            odeint_interface=odeint,
            method="dopri5",
            adjoint_params=params,
        )
        return (t - math.log(2)) ** 2 + 0 * y.sum()

    losses = train(params, loss_of, 40, 5e-2)
    assert losses[-1] < 1e-2 * losses[0]
    assert level.item() == pytest.approx(1.0, abs=0.05)


class ODEBlock(nn.Module):
    """A block of a network: the state at the last of two times, f counted by its attribute."""

    def __init__(self, odefunc):
        super().__init__()
        self.odefunc = odefunc
        self.integration_time = torch.tensor([0, 1]).float()

    def forward(self, x):
        self.integration_time = self.integration_time.type_as(x)
        return odeint(self.odefunc, x, self.integration_time, rtol=1e-3, atol=1e-3)[1]


class ConvField(nn.Module):
    """Convolutions that see t as a further channel, between group normalisations."""

    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(2, dim), nn.GroupNorm(2, dim)
        self.conv1, self.conv2 = (nn.Conv2d(dim + 1, dim, 3, 1, 1) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)
        self.nfe = 0

    def forward(self, t, x):
        self.nfe += 1
        out = x
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            out = self.relu(norm(out))
            out = conv(torch.cat([torch.ones_like(out[:, :1]) * t, out], 1))
        return out


def test_odenet():
    """Classification of images by a network with an ODE block, evaluations counted forward and backward."""
    x = torch.randn(32, 1, 8, 8)
    labels = (x[:, :, :4].mean((1, 2, 3)) > x[:, :, 4:].mean((1, 2, 3))).long()
    block = ODEBlock(ConvField(6))
    model = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), block, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 2))
    forward, backward = [], []

    def loss_of():
        block.odefunc.nfe = 0
        loss = nn.functional.cross_entropy(model(x), labels)
        forward.append(block.odefunc.nfe)
        return loss

    losses = train(model.parameters(), loss_of, 15, 2e-2)
    assert losses[-1] < 0.6 * losses[0]
    backward = block.odefunc.nfe - forward[-1]
    assert 8 <= forward[-1] <= 200
    assert 7 <= backward <= 400


@pytest.mark.slow
def test_neural_controlled_field():
    """A field that reads an input off a grid of times, at fixed steps that end at these times."""
    times = torch.linspace(0, 1, 11)
    control = torch.sin(6 * times)

    class Controlled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 1)

        def forward(self, t, y):
            i = (t * 10).long().clamp(max=10)
            return self.net(torch.cat([y, control[i].expand_as(y)], -1))

    func = Controlled()
    wanted = torch.cumsum(control, 0)[:, None, None] / 10

    def loss_of():
        y = odeint(func, torch.zeros(1, 1), times, method="rk4", options={"perturb": True, "interp": "cubic"})
        return ((y - wanted) ** 2).mean()

    losses = train(func.parameters(), loss_of, 25, 8e-2)
    assert losses[-1] < 0.2 * losses[0]


def test_trainable_span():
    """The end of the integration is learned."""
    end = nn.Parameter(torch.tensor(0.5))

    def loss_of():
        t = torch.stack([torch.zeros(()), end])
        return (odeint(lambda t, y: -y, torch.ones(1), t, rtol=1e-5, adjoint_params=())[-1] - 0.25).pow(2).sum()

    train([end], loss_of, 60, 4e-2)
    assert end.item() == pytest.approx(math.log(4), abs=0.1)
