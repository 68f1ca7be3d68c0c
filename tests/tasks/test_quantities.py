"""The quantities of each task are the metrics of its validation; the objective is one of them."""

import pytest
import torch

from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.config.schema.quantities import QUANTITIES
from odebench.tasks import build_task

DENSITY = ["data.samples=64", "data.validation=40", "data.test=40", "trainer.batch_size=16", "model.end_time=0.1"]
FLOW = ["model=ffjord", "model.dims=[4]"]
PLANAR = ["model=planar_nf", "model.layers=2", *DENSITY[:-1]]
FEW = ["data.train_limit=32", "data.validation=20", "trainer.batch_size=16"]
SERIES = [*FEW, "solver=euler", "solver.steps=4"]
LATENT = ["model=latent_ode", "model.encoder_width=5", "model.field_units=4", "loss.eval_samples=1", *SERIES]
IMAGES = [*FEW, "data.augment=false"]
CHOICES = {
    "classification": ["model.width=4", "model.groups=2", *IMAGES],
    "classification without an ODE": ["model=mlp", "model.hidden=4", *IMAGES],
    "cnf": ["model=cnf", *DENSITY],
    "cnf of a known target": ["model=cnf", "data=potential_1", *DENSITY],
    "density matching": ["model=cnf", "data=potential_1", "loss=density_matching", *DENSITY],
    "planar": PLANAR,
    "estimated trace": [*FLOW, "model.trace=hutchinson", "data=checkerboard", *DENSITY],
    "images": [*FLOW, "data=mnist5k", "model.trace=hutchinson", "solver=euler", "solver.steps=1", *IMAGES],
    "spirals": LATENT,
    "interpolation": [*LATENT, "data=periodic"],
    "labels": [*LATENT, "model.classify=true", "model.encoder=ode_rnn", "model.encoder_field_units=4"],
    "events": [*LATENT, "data=poisson_events", "model.events=true", "model.observations=false"],
    "without a latent variable": ["model=rnn", "model.width=4", "data=periodic", "data.mode=extrapolation", *FEW],
    "ode_rnn": ["model=ode_rnn", "model.width=4", "model.field_units=4", "model.gate_units=4", *SERIES],
}


def test_a_quantity_of_several_tasks_is_the_same_for_all():
    for name in {name for of_task in QUANTITIES.values() for name in of_task}:
        assert len({of_task[name] for of_task in QUANTITIES.values() if name in of_task}) == 1, name


@pytest.mark.parametrize("overrides", CHOICES.values(), ids=list(CHOICES))
def test_the_quantities_of_a_task_are_those_of_its_validation(overrides):
    torch.manual_seed(0)
    task = build_task(read_settings(compose([*overrides, "device=cpu"])), torch.device("cpu"))
    known = QUANTITIES[read_settings(compose([*overrides])).task]
    assert sorted(task.quantities) == sorted(task.evaluate("validation").keys() & known.keys())
