"""Vector fields that differ between evaluations are refused, however deep their noise is hidden."""

import sys
import threading
import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from odebench.ode import Checkpoint, Rows, Status, odeint, odeint_adjoint, solve

Y0 = torch.linspace(-1, 1, 24).reshape(4, 6)
STEPPINGS = ["shared", "per_sample"]
ATTENTION = nn.MultiheadAttention(6, 2, dropout=0.5)
HIDDEN = types.SimpleNamespace(layer=nn.Dropout(0.5))


def one_call_deeper(y):
    return HIDDEN.layer(y)


FIELDS = {
    "functional dropout": lambda t, y: F.dropout(y, 0.5),
    "attention": lambda t, y: ATTENTION(y, y, y)[0],
    "rrelu": lambda t, y: nn.RReLU()(y),
    "a call deeper": lambda t, y: one_call_deeper(y),
    "plain object": lambda t, y: HIDDEN.layer(y),
    "tiny": lambda t, y: -y + 1e-6 * torch.randn_like(y),
}
MODES = {
    "backprop": {},
    "adaptive": {"method": "dopri5", "steps": None},
    "checkpoint": {"gradient": "checkpoint"},
    "keep graphs": {"gradient": Checkpoint(keep="graphs")},
    "adjoint": {"gradient": "adjoint"},
    "reversible": {"gradient": "reversible", "method": "reversible_rk4"},
    "implicit": {"method": "kvaerno5"},
    "rosenbrock": {"method": "rodas4"},
    "scipy": {"method": "scipy_rk45", "steps": None},
}


@pytest.mark.parametrize("stepping", STEPPINGS)
@pytest.mark.parametrize("field", FIELDS)
def test_noise_is_refused(field, stepping):
    with pytest.raises(
        ValueError, match=r"f draws random numbers at every evaluation; call \.eval\(\).*args=\(noise,\)"
    ):
        solve(FIELDS[field], Y0, [0.0, 1.0], method="rk4", steps=4, stepping=stepping)


@pytest.mark.parametrize("mode", MODES)
def test_noise_is_refused_in_every_mode(mode):
    y0 = Y0.clone().requires_grad_(mode != "scipy")
    with pytest.raises(ValueError, match="f draws random numbers at every evaluation"):
        solve(FIELDS["functional dropout"], y0, [0.0, 1.0], **{"method": "rk4", "steps": 4} | MODES[mode])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(6, 6, num_layers=2, dropout=0.5)

    def forward(self, y):
        return self.gru(y)[0]


SPECTRAL = {
    "parametrization": nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
    "hook": nn.utils.spectral_norm(nn.Linear(6, 6)),
}
LAYERS = {**SPECTRAL, "batch norm": nn.BatchNorm1d(6), "dropout": nn.Dropout(0.5), "recurrent": Recurrent()}


@pytest.mark.parametrize("stepping", STEPPINGS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_that_changes_in_training_mode_is_refused_in_args_and_a_closure(layer, stepping):
    module = LAYERS[layer].train()
    for f, args in (lambda t, y, layer: layer(y), (module,)), (lambda t, y: module(y), ()):
        with pytest.raises(ValueError, match=r"\(.*\) in training mode, which changes at every evaluation"):
            solve(f, Y0, [0.0, 1.0], args=args, stepping=stepping)
        module.eval()
        assert solve(f, Y0, [0.0, 1.0], args=args, stepping=stepping).y.isfinite().all()
        module.train()


class Encoded(nn.Module):
    """Solves with a field that holds this module, whose encoder has dropout."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Dropout(0.5)
        self.field = nn.Linear(6, 6)
        self.scale = 0.5

    def scaled(self, y):
        return self.scale * self.field(y)

    def encoded(self, y):
        return self.field(self.encoder(y))


@pytest.mark.parametrize("stepping", STEPPINGS)
def test_layers_that_f_does_not_use_are_not_refused(stepping):
    module = Encoded()
    for f in (lambda t, y: module.scale * module.field(y), lambda t, y: module.scaled(y)):
        assert solve(f, Y0, [0.0, 1.0], stepping=stepping).y.isfinite().all()
    for f in (
        lambda t, y: module.encoder(y),
        lambda t, y: module.encoded(y),
        lambda t, y: module.get_submodule("encoder")(y),
        lambda t, y: next(iter(module.children()))(y),
        lambda t, y: sum(layer(y) for layer in (module.encoder,)),
    ):
        with pytest.raises(ValueError, match=r"module\.encoder \(Dropout\) in training mode"):
            solve(f, Y0, [0.0, 1.0], stepping=stepping)


def in_a_closure(layer):
    return lambda y: layer(y)


@pytest.fixture
def nothing_compiled():
    """As in a process that has not called torch.compile: layers are not watched where code was compiled."""
    if "torch._dynamo.utils" in sys.modules:
        torch._dynamo.utils.counters.clear()


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("stepping", STEPPINGS)
@pytest.mark.parametrize("layer", [*SPECTRAL, "batch norm"])
def test_a_layer_that_updates_its_buffers_is_refused_wherever_it_is(layer, stepping):
    holder = types.SimpleNamespace(layer=LAYERS[layer].train())
    inner = in_a_closure(holder.layer)
    for f in (lambda t, y: inner(y), lambda t, y: holder.layer(y)):
        with pytest.raises(ValueError, match=r"f has \w+ in training mode, which changes at every evaluation"):
            solve(f, Y0, [0.0, 1.0], method="rk4", steps=4, stepping=stepping)
        with pytest.warns(UserWarning, match=r"func has \w+ in training mode.*call \.eval\(\)"):
            odeint(f, Y0, torch.tensor([0.0, 1.0]), method="rk4")
        holder.layer.eval()
        assert solve(f, Y0, [0.0, 1.0], stepping=stepping).y.isfinite().all()
        holder.layer.train()


@pytest.mark.usefixtures("nothing_compiled")
def test_layers_that_another_thread_calls_are_not_refused():
    norm = types.SimpleNamespace(layer=nn.BatchNorm1d(6))

    def f(t, y):
        thread = threading.Thread(target=norm.layer, args=(Y0,))
        thread.start()
        thread.join()
        return -y

    assert solve(f, Y0, [0.0, 1.0], method="rk4", steps=1).y.isfinite().all()


def test_a_compiled_field_is_compiled_as_often_as_its_calls_need():
    """Not once more, without the hook that watches layers."""
    torch._dynamo.reset()
    layer = torch.compile(nn.Tanh(), backend="eager")
    torch._dynamo.utils.counters.clear()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            solve(lambda t, y: layer(y), Y0, [0.0, 1.0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


ONE_EVALUATION = {
    "checkpoint": {"gradient": "checkpoint"},
    "adjoint": {"gradient": "adjoint"},
    "rows": {"gradient": "checkpoint", "stepping": "per_sample"},
}


@pytest.mark.parametrize("mode", ONE_EVALUATION)
def test_a_solve_of_one_evaluation_is_refused_in_its_backward_pass(mode):
    """Only this one evaluates f again."""
    y0 = Y0.clone().requires_grad_()
    options = {"method": "euler", "steps": 1, **ONE_EVALUATION[mode]}
    y = solve(FIELDS["functional dropout"], y0, [0.0, 1.0], **options).y
    with pytest.raises(ValueError, match="f draws random numbers at every evaluation"):
        y.sum().backward()
    solve(lambda t, y: -y, y0, [0.0, 1.0], **options).y.sum().backward()


@pytest.mark.parametrize("options", [{"method": "rk4", "steps": 2}, {"first_step": 0.1}], ids=["fixed", "adaptive"])
def test_noise_in_a_compiled_step_is_refused(options, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    with pytest.raises(ValueError, match="f draws random numbers at every evaluation"):
        solve(FIELDS["functional dropout"], Y0, [0.0, 1.0], compile=True, **options)


@pytest.mark.parametrize("stepping", STEPPINGS)
def test_noise_that_the_first_evaluation_draws_for_all_is_allowed(stepping):
    """As in FFJORD's published code. Such a solve draws and evaluates as often as it says."""
    noise, calls = [], []

    def f(t, y):
        calls.append(t)
        if not noise:
            noise.append(torch.randn(()))
        return noise[0] - y

    assert solve(f, Y0, [0.0, 1.0], stepping=stepping).stats.nfe == len(calls)


@pytest.mark.parametrize("stepping", STEPPINGS)
def test_random_numbers_that_another_thread_draws_are_no_noise(stepping):
    def f(t, y):
        torch.rand(())  # as if drawn by another thread
        return -y

    y = solve(f, Y0, [0.0, 1.0], steps=4, stepping=stepping).y
    assert torch.equal(y, solve(lambda t, y: -y, Y0, [0.0, 1.0], steps=4, stepping=stepping).y)


def test_noise_in_args_is_allowed():
    for stepping in STEPPINGS:
        noise = (Rows(torch.randn(4, 6)),)
        assert solve(lambda t, y, e: e - y, Y0, [0.0, 1.0], args=noise, stepping=stepping).y.isfinite().all()


@pytest.mark.parametrize("call", [odeint, odeint_adjoint])
def test_the_drop_in_warns(call):
    with pytest.warns(UserWarning, match="func draws random numbers at every evaluation"):
        call(FIELDS["functional dropout"], Y0, torch.tensor([0.0, 1.0]), method="rk4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(lambda t, y: -y, Y0, torch.tensor([0.0, 1.0]), method="rk4")


@pytest.mark.gpu
@pytest.mark.parametrize("stepping", STEPPINGS)
def test_noise_on_a_gpu_is_refused(stepping):
    with pytest.raises(ValueError, match="f draws random numbers at every evaluation"):
        solve(FIELDS["functional dropout"], Y0.cuda(), [0.0, 1.0], method="rk4", steps=4, stepping=stepping)
    torch.cuda.set_sync_debug_mode("error")
    try:
        from odebench.ode.noise import evaluate_watched, refuse_noise

        y = evaluate_watched(lambda t, y: -y, refuse_noise, (), Y0.cuda()[0, 0], Y0.to("cuda", non_blocking=True))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(y.cpu(), -Y0)


class Counter(nn.Module):
    """Counts its calls in a buffer, replaced or in place; ``weight`` of the count in its result."""

    def __init__(self, weight, in_place):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.weight, self.in_place = weight, in_place

    def forward(self, t, y):
        if self.in_place:
            self.count += 1
        else:
            self.count = self.count + 1
        return -y * (1 + self.weight * self.count)


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "replaced"])
@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: lambda t, y: f(t, y)], ids=["module", "function"])
def test_a_buffer_that_changes_the_result_is_refused_and_one_that_counts_is_not(in_place, wrap):
    for options in ({"method": "rk4", "steps": 3}, {"stepping": "per_sample"}, {"gradient": "checkpoint"}):
        with pytest.raises(ValueError, match="f changes a buffer, and with it its result"):
            solve(wrap(Counter(0.1, in_place)), Y0, [0.0, 1.0], **options)
        assert solve(wrap(Counter(0.0, in_place)), Y0, [0.0, 1.0], **options).status is Status.success
    with pytest.warns(UserWarning, match="func changes a buffer"):
        odeint(wrap(Counter(0.1, in_place)), Y0, torch.tensor([0.0, 1.0]), method="rk4")
