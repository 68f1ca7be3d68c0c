"""One training step of a model on a test double of an accelerator: the CPU's numbers, and how often the loop waits.

Missing are latent_ode, whose encoder takes another way on accelerators and rounds differently, and the models with GRU
cells, whose fused operation on accelerators the double lacks.
"""

import pytest
import torch
from device_double import DEVICE, Accelerator

from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.tasks import build_task
from odebench.training.checkpoint import TrainingState
from odebench.training.loop import train_step

IMAGES = "data=mnist5k data.train_limit=64 data.validation=40 trainer.batch_size=8"
SMALL = "budget=small trainer.batch_size=16"
STEPS = {
    "odenet": f"model=odenet model.width=8 model.groups=4 {IMAGES}",
    "rknet": f"model=rknet model.width=8 model.groups=4 {IMAGES}",
    "resnet": f"model=resnet model.width=8 model.groups=4 {IMAGES}",
    "mlp": f"model=mlp {IMAGES}",
    "cnf": f"experiment=paper/cnf_maximum_likelihood {SMALL}",
    "cnf-density_matching": f"experiment=paper/cnf_density_matching {SMALL}",
    "planar_nf": f"experiment=paper/nf_maximum_likelihood {SMALL}",
    "planar_nf-density_matching": f"experiment=paper/nf_density_matching {SMALL}",
    "ffjord": f"experiment=ffjord/toy {SMALL}",
    "ffjord-flow_matching": f"experiment=flow_matching/toy {SMALL}",
    "rnn": f"experiment=paper/rnn_spirals {SMALL}",
    "ode_rnn": "model=ode_rnn data=periodic data.train_limit=12 trainer.batch_size=6",
}
QUICK = ["mlp", "odenet", "planar_nf", "ffjord"]


def take_a_step(overrides, device):
    """The metrics of a training step, and the weights after it, on the CPU."""
    settings = read_settings(compose(["device=cpu", *overrides.split()]))
    torch.manual_seed(0)
    training = TrainingState(settings, build_task(settings, device))
    metrics = train_step(training, settings, num_steps=10)
    return metrics, [parameter.detach().cpu() for parameter in training.task.model.parameters()]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in STEPS])
def test_a_step_gives_the_numbers_of_the_cpu_and_the_loop_reads_few(name):
    metrics, weights = take_a_step(STEPS[name], torch.device("cpu"))
    with Accelerator() as device:
        metrics_there, weights_there = take_a_step(STEPS[name], DEVICE)
    assert metrics_there == metrics
    assert all(torch.equal(a, b) for a, b in zip(weights_there, weights, strict=True))
    # The loss and the gradient's norm, which end a diverged training before the weights change, and the metrics.
    loop_reads = {line: count for line, count in device.reads.items() if line.startswith("training/loop.py")}
    assert sum(loop_reads.values()) <= 4
