"""The density task: three losses with the same evaluation."""

import math
import sys
import warnings
from itertools import permutations

import numpy as np
import pytest
import torch

from odebench.config.compose import compose
from odebench.config.files import CONFIGS
from odebench.config.read import read_settings
from odebench.errors import UsageError
from odebench.tasks import build_task
from odebench.tasks.density import flow_matching_loss, transport_plan

SMALL = [
    "model.width=4",
    "model.hidden=8",
    "model.end_time=1.0",
    "data.samples=256",
    "data.validation=200",
    "data.test=200",
    "trainer.batch_size=32",
    "trainer.eval_batch_size=128",
    "device=cpu",
]


def task_of(*overrides):
    torch.manual_seed(0)
    return build_task(read_settings(compose(["model=cnf", *SMALL, *overrides])), torch.device("cpu"))


def planar(*overrides):
    small = [override for override in SMALL if not override.startswith("model.")]
    torch.manual_seed(0)
    settings = read_settings(compose(["model=planar_nf", "model.layers=3", *small, *overrides]))
    return build_task(settings, torch.device("cpu"))


def test_batches_are_fresh_samples_and_a_function_of_the_step():
    task = task_of()
    assert task.steps_per_epoch == 8
    assert torch.equal(task.batch(3), task.batch(3))
    assert not torch.equal(task.batch(3), task.batch(11))
    fixed = task_of("data.fresh=false")
    epoch = torch.cat([fixed.batch(step) for step in range(8)])
    assert torch.equal(epoch.sort(dim=0).values, fixed._splits["train"].sort(dim=0).values)


def test_a_limit_does_not_change_training_batches():
    task = task_of("data.fresh=false")
    before = task.batch(1)
    task.limit_split("train", 40)
    assert task.evaluate("train")["samples"] == 40
    assert torch.equal(task.batch(1), before)


def test_maximum_likelihood_minimises_the_negative_log_likelihood():
    task = task_of()
    batch = task.batch(0)
    loss = task.loss(batch)
    log_prob, _ = task.model.log_prob(batch, task.eval_solve)
    assert loss.value.item() == pytest.approx(-log_prob.mean().item(), abs=1e-3)
    assert loss.metrics["train/nll_nats"].item() == loss.value.item()
    loss.value.backward()
    assert loss.solves[0].backward.nfe > 0


def test_density_matching_reports_the_divergence_that_quadrature_gives():
    task = planar("data=potential_2", "loss=density_matching", "model.closed=sampling", "data.validation=4000")
    numbers = task.evaluate("validation")
    edges = torch.linspace(-7, 7, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(edges, edges)
    model = task.model.double()
    with torch.no_grad():
        log_q = model.log_prob(grid)[0]
    log_p = task._data.log_density(grid) - task._data.log_normaliser
    cell = (edges[1] - edges[0]).item() ** 2
    assert (log_q.exp().sum() * cell).item() == pytest.approx(1, abs=1e-3)
    kl = ((log_q - log_p) * log_q.exp()).sum().item() * cell
    assert numbers["kl_nats"] == pytest.approx(kl, abs=4 * numbers["kl_std_error"])
    assert numbers["loss"] == pytest.approx(numbers["kl_nats"] - task._data.log_normaliser)
    assert task.format_metrics(numbers)[0][0] == "KL"


def test_an_infinite_divergence_has_no_margin():
    numbers = {"nll_nats": 2.0, "kl_nats": math.inf, "kl_std_error": math.nan}
    assert task_of().format_metrics(numbers) == [("NLL", "2.0000 nats"), ("KL", "inf nats")]


def test_flow_matching_needs_no_solve_and_vanishes_for_the_true_field():
    task = task_of("loss=flow_matching")
    loss = task.loss(task.batch(0))
    assert loss.solves == ()
    # If the data is the shifted noise, the velocity of the straight paths is the shift.
    shift = torch.tensor([3.0, -1.0])
    task.model.velocity = lambda t, x: shift.expand_as(x)
    task.model.base_sample = lambda num, generator=None: noise
    noise = torch.randn(16, 2)
    value = flow_matching_loss(task.model, noise + shift, "optimal_transport", sigma=0.0)
    assert value.item() == pytest.approx(0.0, abs=1e-10)


def test_the_optimal_coupling_is_the_cheapest_of_all_permutations():
    torch.manual_seed(0)
    x0, x1 = torch.randn(2, 5, 2)
    plan = transport_plan(x0, x1)
    cheapest = min((x1 - x0[list(order)]).square().sum().item() for order in permutations(range(5)))
    assert (x1 - x0[plan]).square().sum().item() == pytest.approx(cheapest)


def test_evaluation_is_of_the_exact_likelihood_whatever_the_training_used():
    task = ffjord("model.trace=hutchinson")
    exact = ffjord("model.trace=exact").evaluate("test")
    numbers = task.evaluate("test")
    assert numbers["nll_nats"] == pytest.approx(exact["nll_nats"], abs=1e-4)
    assert numbers["trace_std_nats"] > 0
    assert "trace_std_nats" not in exact
    assert numbers["sampling_nfe"] > 0
    assert numbers["samples"] == 200


def ffjord(*overrides):
    small = [override for override in SMALL if not override.startswith(("model.width", "model.hidden"))]
    torch.manual_seed(0)
    settings = read_settings(compose(["model=ffjord", "model.dims=[8,8]", *small, *overrides]))
    return build_task(settings, torch.device("cpu"))


def test_bits_per_dimension_are_those_of_eight_bit_pixels():
    data = ["data=mnist5k", "data.train_limit=64", "data.validation=30", "data.augment=false", "trainer.batch_size=8"]
    model = ["model=ffjord", "model.dims=[4]", "model.trace=hutchinson", "model.logit=1e-6"]
    settings = read_settings(compose([*data, *model, "solver=euler", "solver.steps=1", "device=cpu"]))
    task = build_task(settings, torch.device("cpu"))
    batch = task.batch(0)
    assert 0 < batch.min().item() < batch.max().item() < 1
    loss = task.loss(batch)
    bits = loss.value.item() / (784 * math.log(2)) + 8
    assert loss.metrics["train/bits_per_dim"].item() == pytest.approx(bits, rel=1e-6)


def test_one_sample_has_no_standard_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(task_of("data.validation=1").evaluate("validation")["nll_std_error"])


def test_samples_and_predictions():
    task = task_of()
    samples = task.sample(300, seed=1)
    assert samples.shape == (300, 2)
    assert torch.equal(samples, task.sample(300, seed=1))
    assert not torch.equal(samples, task.sample(300, seed=2))
    assert task_of("trainer.eval_batch_size=7").outputs("validation", 15).shape == (15,)
    columns = task.predict("validation")
    mean = sum(columns["log_prob_nats"]) / 200
    assert -mean == pytest.approx(task.evaluate("validation")["nll_nats"], abs=1e-4)


def test_figures_of_a_density_in_the_plane():
    figures = task_of("model.end_time=0.1").figures()
    assert set(figures) == {"density", "transformation", "transformation_gif", "field"}
    assert figures["transformation_gif"].startswith(b"GIF89a")
    layered = planar().figures()
    assert set(layered) == {"density", "transformation", "transformation_gif"}
    titles = [axes.get_title(loc="left") for axes in layered["transformation"].axes]
    assert titles == ["layer 0", "layer 1", "layer 2", "layer 3"]
    particles = np.stack([axes.lines[0].get_xydata() for axes in layered["transformation"].axes])
    assert np.abs(particles).max() < layered["transformation"].axes[0].get_xlim()[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=density_matching"], "loss=density_matching: the density of data=two_circles is not known"),
        (["trainer.batch_size=300"], "trainer.batch_size=300: there are only 256 training samples"),
        (["data=mnist5k", "data.validation=30"], "model=cnf is for vectors"),
    ],
)
def test_invalid_settings_are_one_line(overrides, message):
    chosen = [w for w in SMALL if "data=mnist5k" not in overrides or not w.startswith("data.")]
    with pytest.raises(UsageError, match=message):
        build_task(read_settings(compose(["model=cnf", *chosen, *overrides])), torch.device("cpu"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=mnist5k", "model.trace=hutchinson"], "data.augment=true: .* set data.augment=false"),
        (["data=mnist5k", "data.augment=false"], "model.trace=exact: .* 784 .* model.trace=hutchinson"),
        (
            ["data=two_moons", "model.logit=1e-6"],
            "model.logit=1e-06: .* data=two_moons has others; set model.logit=null",
        ),
        (["data=two_moons", "model.scales=2"], "model.scales=2: scales are for images"),
    ],
)
def test_a_flow_that_does_not_fit_its_data_is_one_line(overrides, message):
    settings = read_settings(compose(["model=ffjord", "model.dims=[4]", "device=cpu", *overrides]))
    with pytest.raises(UsageError, match=message):
        build_task(settings, torch.device("cpu"))


def test_the_likelihood_of_a_model_that_has_none_is_refused(tmp_path, monkeypatch):
    (tmp_path / "their_lab.py").write_text("import torch\nMODELS = {'bare': lambda: torch.nn.Linear(2, 2)}\n")
    (tmp_path / "model").mkdir()
    text = (CONFIGS / "model" / "planar_nf.yaml").read_text()
    (tmp_path / "model" / "bare.yaml").write_text(f"{text[: text.index('model:')]}model:\n  name: bare\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "their_lab", None)
    del sys.modules["their_lab"]
    settings = read_settings(compose(["extensions=[their_lab]", "model=bare", "solver=dopri5"], tmp_path))
    with pytest.raises(UsageError, match=r"model=bare: it has no log_prob"):
        build_task(settings, torch.device("cpu"))


GRADIENTS = {
    "adjoint": [],
    "interpolated_adjoint": [],
    "checkpoint": [],
    "reversible": ["solver=reversible_dopri5"],
    "checkpoint per sample": ["solver.stepping=per_sample"],
}


@pytest.mark.parametrize("mode", GRADIENTS)
def test_an_estimated_trace_and_its_regularisers_have_a_gradient_in_every_mode(mode):
    def gradient(*overrides):
        task = ffjord("model.trace=hutchinson", "dynamics=rnode", "dynamics.steer=0.2", "tol=1e-5", *overrides)
        torch.manual_seed(1)  # of the noise, and of the random end time
        task.loss(task.batch(0)).value.backward()
        return torch.cat([parameter.grad.flatten() for parameter in task.model.parameters()])

    found = gradient(f"gradient={mode.split()[0]}", *GRADIENTS[mode])
    torch.testing.assert_close(found, gradient("gradient=backprop"), rtol=1e-3, atol=1e-4)


def test_the_deviation_of_the_estimated_trace_is_of_the_first_batch_alone(monkeypatch):
    task = ffjord("model.trace=hutchinson")
    traces = []
    log_prob = type(task.model).log_prob
    monkeypatch.setattr(type(task.model), "log_prob", lambda *args: traces.append(args[-1]) or log_prob(*args))
    task.evaluate("test")
    assert traces == ["exact", "exact", "hutchinson"]


def test_a_field_that_draws_noise_within_a_solve_is_refused(monkeypatch):
    task = task_of()
    (block,) = task.model.transforms
    closed = type(block.field).divergence
    noisy = lambda self, t, z: tuple(part + torch.randn_like(part) for part in closed(self, t, z))  # noqa: E731
    monkeypatch.setattr(type(block.field), "divergence", noisy)
    with pytest.raises(UsageError, match=r"^model: its vector field draws random numbers"):
        task.loss(task.batch(0))


def test_a_planar_flow_of_images_is_refused():
    with pytest.raises(UsageError, match="model=planar_nf is for vectors, but the data are images; use model=ffjord"):
        build_task(read_settings(compose(["model=planar_nf", "data=mnist5k"])), torch.device("cpu"))


def test_a_model_without_a_velocity_field_cannot_be_matched():
    with pytest.raises(UsageError, match="planar_nf has no velocity field"):
        planar("loss=flow_matching")


def test_the_weights_of_the_dynamics_apply_to_the_likelihood_per_dimension():
    task = task_of("dynamics.kinetic=0.3")
    numbers = task.loss(task.batch(0)).metrics
    penalty = numbers["train/loss"] - numbers["train/nll_nats"]
    torch.testing.assert_close(penalty, 2 * 0.3 * numbers["dynamics/kinetic"])


def test_validation_and_test_estimate_the_divergence_with_different_samples():
    task = task_of("data=potential_1", "loss=density_matching", "data.validation=200", "data.test=200")
    assert task.evaluate("validation")["kl_nats"] != task.evaluate("test")["kl_nats"]
    assert task.evaluate("test")["kl_nats"] == task.evaluate("test")["kl_nats"]
