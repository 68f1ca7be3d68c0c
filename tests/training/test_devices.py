"""A training step of every model on a test double of an accelerator: the CPU's numbers, and how often it is read."""

import math

import pytest
import torch
from device_double import DEVICE, Accelerator

from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.config.schema.losses import LOSSES
from odebench.config.schema.models import MODELS
from odebench.errors import Diverged
from odebench.tasks import build_task
from odebench.training.checkpoint import TrainingState
from odebench.training.loop import train_step

IMAGES = "data=mnist5k data.train_limit=64 data.validation=40 trainer.batch_size=8"
SMALL = "budget=small trainer.batch_size=16"
SERIES = "data=periodic data.train_limit=12 trainer.batch_size=6"
POISSON = "budget=small data.level=3 data.train_limit=12 trainer.batch_size=6"
STEPS = {
    "odenet": f"model=odenet model.width=8 model.groups=4 {IMAGES}",
    "rknet": f"model=rknet model.width=8 model.groups=4 {IMAGES}",
    "resnet": f"model=resnet model.width=8 model.groups=4 {IMAGES}",
    "mlp": f"model=mlp {IMAGES}",
    "cnf": f"experiment=paper/cnf_maximum_likelihood {SMALL}",
    "cnf-density_matching": f"experiment=paper/cnf_density_matching {SMALL}",
    "cnf-scipy": f"experiment=paper/cnf_maximum_likelihood solver=scipy_rk23 gradient=adjoint {SMALL}",
    "planar_nf": f"experiment=paper/nf_maximum_likelihood {SMALL}",
    "planar_nf-density_matching": f"experiment=paper/nf_density_matching {SMALL}",
    "ffjord": f"experiment=ffjord/toy {SMALL}",
    "ffjord-flow_matching": f"experiment=flow_matching/toy {SMALL}",
    "rnn": f"experiment=paper/rnn_spirals {SMALL}",
    "ode_rnn": f"model=ode_rnn {SERIES}",
    "ode_rnn-adaptive": f"model=ode_rnn model.encoder_solver=null tol=1e-2 {SERIES}",
    "rnn-gru": f"experiment=paper/rnn_spirals model.kind=gru {SMALL}",
    "rnn_decay": f"model=rnn_decay {SERIES}",
    "gru_d": f"model=gru_d {SERIES}",
    "rnn_vae": f"model=rnn_vae {SERIES}",
    "baseline": f"model=baseline {SERIES}",
    "event_smoothing": "experiment=baseline/poisson data.level=3 data.train_limit=12 trainer.batch_size=6",
    "latent_ode": f"experiment=paper/latent_ode_spirals {SMALL}",
    "latent_ode-ode_rnn": f"model=latent_ode model.encoder=ode_rnn {SERIES} loss.samples=3 loss.combine=logsumexp",
    "latent_ode-poisson": f"experiment=paper/poisson {POISSON}",
    "latent_ode-events": f"experiment=paper/poisson {POISSON} data.observations=false model.observations=false",
}
QUICK = ["mlp", "odenet", "planar_nf", "ffjord", "rnn_decay", "latent_ode"]
# Accelerators round these differently. A step of nn.GRUCell is one operation there, which adds the biases after the
# product, and the encoder of latent_ode is nn.RNN or nn.GRU there, and on CPUs a loop with the batch dimension last.
ROUNDED = ["rnn-gru", "rnn_decay", "gru_d", "rnn_vae", "latent_ode", "latent_ode-poisson", "latent_ode-events"]


def settings_of(name):
    return read_settings(compose(["device=cpu", *STEPS[name].split()]))


def take_a_step(name, device):
    """The metrics of a training step; and the gradients, and the weights after it, on the CPU."""
    settings = settings_of(name)
    torch.manual_seed(0)
    training = TrainingState(settings, build_task(settings, device))
    metrics = train_step(training, settings, num_steps=10)
    weights = [weight for weight in training.task.model.parameters() if weight.grad is not None]
    return metrics, [weight.grad.cpu() for weight in weights], [weight.detach().cpu() for weight in weights]


def test_no_model_and_no_loss_is_left_out():
    steps = [settings_of(name) for name in STEPS]
    assert {settings.model.name for settings in steps} == set(MODELS)
    assert {settings.loss.name for settings in steps} == set(LOSSES)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in STEPS])
def test_a_step_gives_the_numbers_of_the_cpu_and_the_loop_reads_once(name):
    metrics, gradients, weights = take_a_step(name, torch.device("cpu"))
    with Accelerator() as device:
        metrics_there, gradients_there, weights_there = take_a_step(name, DEVICE)
    if name in ROUNDED:
        assert metrics_there == pytest.approx(metrics, rel=1e-4)
        gradient, gradient_there = (torch.cat([g.flatten() for g in pair]) for pair in (gradients, gradients_there))
        assert torch.linalg.vector_norm(gradient_there - gradient) <= 1e-4 * torch.linalg.vector_norm(gradient)
    else:
        assert metrics_there == metrics
        assert all(torch.equal(a, b) for a, b in zip(weights_there, weights, strict=True))
    # Loss, gradient norm and metrics together, before the weights change: the first two may end the training. Metrics
    # of series are read together before that, as those without an observed value are left out.
    loop_reads = {place: n for place, n in device.reads.items() if place.startswith(("training/", "tasks/task.py"))}
    assert loop_reads == {"tasks/task.py read_numbers": 2 if settings_of(name).task == "time_series" else 1}
    # The longest gaps of ODE-RNN are read once, not at each time.
    assert device.reads["models/series/recurrence.py run_cell"] <= 1
    assert not any(place.startswith("models/series/cells.py") for place in device.reads)


@pytest.mark.parametrize("name", ["cnf", "cnf-scipy", "mlp", "planar_nf"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_reported_before_the_weights_change(name, wrong):
    """Whatever the backward pass makes of it: the adjoint's solve fails, and SciPy refuses the gradient."""
    settings = settings_of(name)
    with Accelerator():
        training = TrainingState(settings, build_task(settings, DEVICE))
        before = [weight.detach().clone() for weight in training.task.model.parameters()]
        loss_of = training.task.loss
        training.task.loss = lambda batch: (loss := loss_of(batch))._replace(value=loss.value * wrong)
        with pytest.raises(Diverged, match=f"the loss is -?{wrong}"):
            train_step(training, settings, num_steps=10)
        assert all(torch.equal(a, b) for a, b in zip(training.task.model.parameters(), before, strict=True))


def test_a_gradient_that_is_not_finite_is_reported_before_the_weights_change():
    settings = settings_of("mlp")
    with Accelerator():
        training = TrainingState(settings, build_task(settings, DEVICE))
        weight = next(training.task.model.parameters())
        before = weight.detach().clone()
        weight.register_hook(lambda gradient: gradient * math.inf)
        with pytest.raises(Diverged, match=r"the gradient's norm is (inf|nan), at a loss of \d"):
            train_step(training, settings, num_steps=10)
        assert torch.equal(weight, before)
