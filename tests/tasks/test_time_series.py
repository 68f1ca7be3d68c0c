"""The time-series task: its batches, its losses, and its metrics for spirals, sinusoids and events."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.data import DATA
from odebench.data.periodic import periodic
from odebench.errors import UsageError
from odebench.models.series.recurrence import Observations
from odebench.record.layout import FIGURES
from odebench.record.reader import read_run
from odebench.tasks import build_task
from odebench.tasks.compatibility import check_series_model
from odebench.tasks.series_losses import kl_from_prior, label_loss, log_likelihood, negative_log_posterior
from odebench.training.run import train_run

SMALL = [
    "model=latent_ode",
    "model.encoder_width=5",
    "model.field_units=6",
    "model.decoder_units=4",
    "loss.eval_samples=2",
]
RNN = ["model=rnn", "model.width=5", "model.decoder_units=4"]
FIXED = ["solver=rk4", "solver.steps=10"]
CPU = torch.device("cpu")


@pytest.fixture
def build(tiny):
    def make(*overrides):
        torch.manual_seed(0)
        return build_task(read_settings(compose([*tiny, *overrides])), CPU)

    return make


def tensors(batch):
    return [batch.inputs.values, batch.inputs.mask, batch.targets.values, batch.targets.mask, batch.noise]


def test_batches_are_a_function_of_the_step(build):
    task = build(*SMALL, "data=periodic")
    first = [task.batch(step) for step in range(6)]
    for step in (5, 0, 4):
        assert all(torch.equal(a, b) for a, b in zip(tensors(task.batch(step)), tensors(first[step]), strict=True))
    assert not torch.equal(first[0].noise, first[1].noise)


EVERY_MODEL = {
    "latent_ode": [*SMALL, "model.events=true", "model.classify=true", "loss.consistency=1", "loss.samples=2"],
    "latent_ode_ode_rnn": [*SMALL, "model.encoder=ode_rnn", "model.encoder_field_units=5", "loss.combine=logsumexp"],
    "rnn_vae": ["model=rnn_vae", "model.encoder_width=5", "model.decoder_width=5", "loss.eval_samples=2"],
    "rnn": [*RNN, "model.classify=true"],
    "rnn_decay": ["model=rnn_decay", "model.width=5"],
    "gru_d": ["model=gru_d", "model.width=5"],
    "ode_rnn": ["model=ode_rnn", "model.width=5", "model.field_units=5", "model.gate_units=5", "model.rollout=true"],
}


@pytest.mark.parametrize(
    ("model", "reduction"),
    [
        *((model, "sum") for model in EVERY_MODEL),
        *(pytest.param(x, "mean", marks=[] if x in ("rnn", "rnn_vae") else pytest.mark.slow) for x in EVERY_MODEL),
    ],
)
def test_a_value_behind_the_mask_changes_neither_loss_nor_gradient_nor_evaluation(build, model, reduction):
    overrides = [*EVERY_MODEL[model], *(FIXED if "ode" in model else []), f"loss.reduction={reduction}"]
    task = build(*overrides, "data.validation=10")

    def outcome(hidden):
        def filled(part):
            thinned = part.mask.clone()
            thinned[:, ::3, 1] = False  # only one of two channels
            return dataclasses.replace(part, values=part.values.masked_fill(~thinned, hidden), mask=thinned)

        batch = task.batch(0)
        task.model.zero_grad()
        loss = task.loss(dataclasses.replace(batch, inputs=filled(batch.inputs), targets=filled(batch.targets)))
        loss.value.backward()
        split = task._data.validation
        task._splits["validation"] = dataclasses.replace(split, values=split.values.masked_fill(~split.mask, hidden))
        gradients = [p.grad for p in task.model.parameters() if p.grad is not None]
        return loss, [loss.value, *(gradient.clone() for gradient in gradients)], task.evaluate("validation")

    (loss, before, numbers), (other_loss, after, other) = outcome(0.0), outcome(1e9)
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert numbers == other
    assert loss.metrics.keys() == other_loss.metrics.keys()
    assert all(value == other_loss.metrics[name] for name, value in loss.metrics.items())


@pytest.mark.parametrize("model", [SMALL, RNN], ids=["latent_ode", "rnn"])
def test_series_without_observations_are_dropped_from_any_data(build, monkeypatch, model):
    def sparse(**options):
        data = periodic(**options)
        unseen = {name: (split.ids % 5 == 0).repeat_interleave(100) for name, split in data.splits().items()}
        masks = {name: split.mask & ~unseen[name].unsqueeze(1) for name, split in data.splits().items()}
        return dataclasses.replace(
            data, **{name: dataclasses.replace(split, mask=masks[name]) for name, split in data.splits().items()}
        )

    monkeypatch.setitem(DATA, "periodic", sparse)
    task = build(*model, "data=periodic", "data.observed=0.3", *(FIXED if model is SMALL else []))
    missing = 64 + 40 + 200 - sum(map(len, task._splits.values()))
    assert missing > 40
    assert task.note == f"series dropped: {missing} with nothing to encode or to compare with"
    assert sum(task.provenance["left_out"].values()) == missing
    for step in range(2 * task.steps_per_epoch):
        batch = task.batch(step)
        assert (batch.inputs.mask.sum((1, 2)) == 30).all()
    loss = task.loss(batch)
    loss.value.backward()
    assert all(p.grad.isfinite().all() for p in task.model.parameters() if p.grad is not None)
    assert all(np.isfinite(number) for number in task.evaluate("test").values())


def test_redrawn_inputs_differ_from_epoch_to_epoch_and_targets_do_not(build):
    task = build(*SMALL, "data=periodic", "data.observed=0.3", "trainer.batch_size=64")
    first, second = task.batch(0), task.batch(1)
    of_series = [batch.targets.values.sum((1, 2)).sort() for batch in (first, second)]
    assert torch.equal(of_series[0].values, of_series[1].values)
    observed = [batch.inputs.mask.sum().item() for batch in (first, second)]
    assert observed[0] == observed[1] == 64 * 30
    sums = [batch.inputs.values.sum((1, 2))[s.indices] for batch, s in zip((first, second), of_series, strict=True)]
    assert not torch.allclose(*sums)


@pytest.mark.parametrize("observed", [0.3, 1.0], ids=["redrawn inputs", "all inputs"])
def test_a_limit_does_not_change_training_batches(build, observed):
    full, limited = (build(*SMALL, *FIXED, "data=periodic", f"data.observed={observed}") for _ in range(2))
    limited.limit_split("train", 5)
    assert limited.evaluate("train")["series"] == 5
    assert all(torch.equal(a, b) for a, b in zip(tensors(limited.batch(1)), tensors(full.batch(1)), strict=True))


def test_a_limit_changes_no_series_samples(build):
    full, limited = (build(*SMALL, "data=periodic") for _ in range(2))
    limited.limit_split("validation", 3)
    assert torch.equal(limited.outputs("validation", 3), full.outputs("validation", 3))


def test_the_loss_is_the_negative_bound(build):
    task = build(*SMALL, *FIXED, "loss.samples=2")
    batch = task.batch(0)
    loss = task.loss(batch)
    forecast = task.model(batch.inputs, batch.targets.times, task._solve, noise=batch.noise)
    likelihood = log_likelihood(forecast, batch.targets, task.model.noise_std, "sum").mean()
    kl = kl_from_prior(forecast.posterior, "sum").mean()
    assert loss.value.item() == pytest.approx((kl - likelihood).item(), rel=1e-5)
    assert loss.metrics["train/nll_nats"] == pytest.approx(-likelihood.item(), rel=1e-5)
    assert loss.metrics["train/kl_nats"] == pytest.approx(kl.item(), rel=1e-5)
    assert [stats.nfe for stats in loss.solves] == [loss.metrics["train/decoder_nfe"]]


def test_the_weight_of_the_divergence_starts_at_its_epoch(build):
    task = build(*SMALL, "loss.kl_wait_epochs=1", "loss.kl_growth=0.9")
    weights = [task.batch(step).kl_weight for step in (0, 3, 4, 8, 12)]
    assert weights == pytest.approx([0, 0, 0, 0.1, 0.19])
    batch = task.batch(0)
    without, full = (task.loss(dataclasses.replace(batch, kl_weight=weight)) for weight in (0.0, 1.0))
    difference = (full.value - without.value).item()
    assert difference == pytest.approx(without.metrics["train/kl_nats"], rel=1e-3)


def test_the_consistency_term_compares_solved_states_with_encoded_states(build):
    task, plain = build(*SMALL, *FIXED, "loss.consistency=2"), build(*SMALL, *FIXED)
    batch = task.batch(0)
    assert torch.equal(batch.noise, plain.batch(0).noise)
    assert 0 <= batch.consistency_time < task._data.span
    assert task.batch(1).consistency_time != batch.consistency_time == task.batch(0).consistency_time
    loss, bound = task.loss(batch), plain.loss(plain.batch(0))
    added = (loss.value - bound.value).item() / 2
    assert loss.metrics["task/consistency"].item() == pytest.approx(added, rel=1e-3)
    # Manually: for each series, encode only the inputs from the first time after that time on.
    inputs, column = batch.inputs, int((batch.inputs.times < batch.consistency_time).sum())
    start = inputs.times[column].item()
    found = []
    with torch.no_grad():
        latents = task.model(inputs, inputs.times, task._solve, noise=batch.noise).latents[:, :, column]
        for series in inputs.mask[:, column:].any((1, 2)).nonzero().flatten().tolist():
            seen = inputs.mask[series, :, 0] & (inputs.times >= start)
            values, mask = inputs.values[None, series, seen], inputs.mask[None, series, seen]
            q, _ = task.model.encoder(Observations(inputs.times[seen] - start, values, mask), task._solve)
            found.append(negative_log_posterior(q, latents[:, [series]]).item())
    assert added == pytest.approx(np.mean(found), rel=1e-3)
    assert plain.batch(0).consistency_time is None
    inputs.mask[:, column:] = False
    assert task.loss(batch).metrics["task/consistency"] == 0


@pytest.mark.slow
def test_the_consistency_of_a_batch_is_the_mean_over_its_shards(build):
    task = build(*SMALL, *FIXED, "data=periodic", "data.observed=0.03", "loss.consistency=1")

    def outcome(batch):
        task.model.zero_grad()
        loss = task.loss(batch)
        loss.value.backward()
        gradients = [p.grad.flatten() for p in task.model.parameters() if p.grad is not None]
        return loss.metrics["task/consistency"], torch.cat(gradients)

    for step in range(4):
        batch = task.batch(step)
        shares = [batch.rows(slice(start, start + 8)) for start in (0, 8)]
        found = [outcome(part) for part in (batch, *shares)]
        for full, *halves in zip(*found, strict=True):
            torch.testing.assert_close(full, sum(halves) / 2, rtol=1e-4, atol=1e-4)
    going_on = [part.inputs.mask[:, part.inputs.times >= batch.consistency_time].any((1, 2)).sum() for part in shares]
    assert going_on[0] != going_on[1]


@pytest.mark.parametrize("model", [SMALL, RNN], ids=["latent_ode", "rnn"])
def test_evaluation_does_not_depend_on_the_batch_size_at_fixed_steps(build, model):
    solver = FIXED if model is SMALL else []
    found = [build(*model, *solver, f"trainer.eval_batch_size={size}").evaluate("validation") for size in (7, 40)]
    for name, number in found[0].items():
        if name != "loss" and "nfe" not in name:
            assert number == pytest.approx(found[1][name], rel=1e-4), name


def test_errors_are_those_of_the_mean_prediction_against_the_truth(build):
    task = build(*SMALL, *FIXED, "data.observed=30", "data.beyond=50")
    numbers = task.evaluate("validation")
    split, everything = task._splits["validation"], torch.arange(40)
    truth = split.noiseless(everything)
    with torch.no_grad():
        values = task._forecast(task.model.eval(), split, everything, truth.times).values.mean(0)
    squares = (values - truth.values).square()
    assert truth.values.shape == (40, 150, 2)
    for name, part in {"interpolation": slice(100), "extrapolation": slice(100, None)}.items():
        known = squares[:, part][truth.mask[:, part]]  # a curve may end before
        assert numbers[f"rmse_{name}"] == pytest.approx(known.mean().sqrt().item(), rel=1e-3)


def test_without_a_truth_errors_are_those_against_the_targets(build):
    numbers = build(*RNN, "data=periodic", "data.mode=extrapolation").evaluate("validation")
    assert {"rmse_interpolation", "rmse_extrapolation"} <= numbers.keys()
    task = build(*RNN, "data=periodic", "data.mode=extrapolation")
    for name, split in task._splits.items():
        task._splits[name] = dataclasses.replace(split, truth=None)
    numbers = task.evaluate("validation")
    assert "rmse_interpolation" not in numbers  # no targets lie in the window
    assert numbers["rmse_extrapolation"] == pytest.approx(numbers["mse"] ** 0.5)


@pytest.mark.parametrize("model", [["model=rnn_vae"], [*RNN, "model.rollout=true"], [*SMALL, *FIXED]])
def test_unused_fields_of_series_do_not_change_the_loss(build, model):
    task = build(*model)
    known = task.evaluate("validation")
    task._splits["validation"] = dataclasses.replace(task._splits["validation"], truth=None)
    plain = task.evaluate("validation")
    assert "rmse_extrapolation" in known
    for name in ("loss", "nll_nats", "mse"):
        assert known[name] == pytest.approx(plain[name], rel=1e-5)


def test_feature_means_use_only_the_models_inputs_and_targets(build):
    task = build("model=gru_d", "model.width=5", "data.observed=3")
    train = task._splits["train"]
    is_used = train.is_input | train.is_target
    assert is_used.sum() < train.mask.any(1).sum()
    torch.testing.assert_close(task.model.cell.means, train.values[is_used].mean(0))


def test_predictions_agree_with_the_evaluation(build):
    task = build(*SMALL, *FIXED)
    rows = task.predict("validation")
    squares = np.concatenate([(np.array(rows[c]) - np.array(rows[f"{c}_mean"])) ** 2 for c in ("x", "y")])
    assert len(rows["series"]) == 40 * 30
    assert min(rows["x_std"]) > 0
    assert np.mean(squares) == pytest.approx(task.evaluate("validation")["mse"], rel=1e-4)


def test_labels_are_learnt_beside_the_series(build):
    task = build(*SMALL, *FIXED, "model.classify=true", "model.classifier_units=8", "loss.label_weight=2")
    batch = task.batch(0)
    loss = task.loss(batch)
    forecast = task.model(batch.inputs, batch.targets.times, task._solve, noise=batch.noise)
    of_labels = loss.value.item() - loss.metrics["train/nll_nats"] - loss.metrics["train/kl_nats"]
    assert of_labels == pytest.approx(2 * label_loss(forecast.logits, batch.targets.labels).item(), rel=1e-2)
    loss.value.backward()
    assert all(p.grad.abs().sum() > 0 for p in task.model.classifier.parameters())
    numbers = task.evaluate("validation")
    assert 0 <= numbers["auc"] <= 1
    assert set(task.predict("validation")) >= {"probability"}


def test_event_rates_are_compared_with_the_true_rate(build):
    task = build(*SMALL, "data=poisson_events", "model.events=true", "model.observations=false")
    task.loss(task.batch(0)).value.backward()
    numbers = task.evaluate("validation")
    assert numbers["rate_rmse"] > 0
    assert "mse" not in numbers
    validation, rate = task._splits["validation"], task._data.rate
    even = validation.offsets.diff().unsqueeze(1) / 5
    apart = even - rate(validation.ids, torch.linspace(0, 5, 101))
    assert numbers["constant_rate_rmse"] == pytest.approx(apart.square().mean().sqrt().item(), rel=1e-5)
    assert set(task.predict("validation")) == {"series", "time", "rate"}


def test_events_may_be_modelled_where_only_some_are_encoded(build):
    task = build(*SMALL, "model.events=true", "data=periodic", "data.observed=0.3")
    batch = task.batch(0)
    assert batch.inputs.mask.sum() < batch.targets.mask.sum() == 16 * 100
    assert torch.isfinite(task.loss(batch).value)


def test_events_of_the_second_half_are_predicted_from_the_first(build):
    task = build(*SMALL, "model.events=true", "data=periodic", "data.mode=extrapolation")
    assert task._data.target_start == task._data.span / 2
    assert torch.isfinite(task.loss(task.batch(0)).value)
    hidden = dataclasses.replace(task._data, target_start=0.0)
    settings = read_settings(compose(["model=latent_ode", "model.events=true", "data=periodic"]))
    with pytest.raises(
        UsageError, match=r"data=periodic has input events .* between its targets; set model.events=fal"
    ):
        check_series_model(task.model, hidden, settings)


def test_nfe_is_counted_by_role(build):
    task = build(*SMALL, *FIXED, "model.encoder=ode_rnn", "model.encoder_field_units=5", "model.gate_units=5")
    numbers = task.evaluate("validation")
    assert numbers["encoder_nfe"] > 30
    assert numbers["decoder_nfe"] > 0
    assert numbers["nfe"] == numbers["encoder_nfe"] + numbers["decoder_nfe"]
    assert "nfe" not in build(*RNN).evaluate("validation")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*SMALL[:-1], "loss=autoregressive"],
            "loss=autoregressive: latent_ode has a latent variable; choose loss=elbo",
        ),
        ([*RNN, "loss=elbo"], "loss=elbo: rnn has no latent variable; choose loss=autoregressive"),
        ([*SMALL, "data=periodic", "model.classify=true"], "model.classify=true: needs series with labels"),
        (["model=rnn_vae", "loss.consistency=1"], "loss.consistency: needs model=latent_ode"),
        ([*SMALL, "loss.consistency=1", "data=periodic", "data.mode=extrapolation"], "loss.consistency: needs"),
        ([*SMALL, "model.observations=false"], "model.observations=false: nothing is left to predict"),
        ([*SMALL, "trainer.batch_size=65", "data.train_limit=null", "data.validation=750"], "only 50 training samples"),
    ],
    ids=["loss", "loss of rnn", "labels", "rnn_vae", "extrapolation", "nothing", "batch"],
)
def test_invalid_settings_are_refused(build, overrides, message):
    with pytest.raises(UsageError, match=message):
        build(*overrides)


@pytest.mark.parametrize("model", ["rnn_vae", "rnn_decay", "gru_d", "ode_rnn"])
def test_every_model_trains_from_its_yaml(build, model):
    task = build(f"model={model}")
    loss = task.loss(task.batch(0))
    loss.value.backward()
    assert all(p.grad is not None for p in task.model.parameters() if p.requires_grad)
    assert torch.isfinite(loss.value)


def test_the_warm_first_step_is_kept(build):
    task = build(*SMALL, "solver.first_step=warm")
    task.loss(task.batch(0))
    state = task.state_dict()
    other = build(*SMALL, "solver.first_step=warm")
    other.load_state_dict(state)
    assert state["warm_step"] is not None
    assert other.loss(task.batch(1)).solves[0].nfe == task.loss(task.batch(1)).solves[0].nfe


def test_figures_show_series_latent_paths_and_errors(build):
    figures = build(*SMALL).figures()
    assert set(figures) == {"series", "latents", "phase", "variations", "error"}
    paths = figures["variations"].axes[0].collections[0].get_segments()
    assert len(paths) == 9
    assert max(np.abs(one - other).max() for one, other in pairwise(paths)) < np.ptp(paths)  # neighbours stay close
    assert any(np.abs(path - paths[0]).max() > 0 for path in paths)
    figures = build(*SMALL, "data=poisson_events", "data.observations=true", "model.events=true").figures()
    assert {"series", "rates", "latents"} <= set(figures)
    truth, inferred = figures["rates"].axes[0].lines[:2]
    for line in (truth, inferred):
        # Also without events.
        assert np.ptp(np.diff(line.get_xdata())) < 1e-5


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [("baseline", "spirals", {"series", "error"}), ("event_smoothing", "poisson_events", {"rates"})],
)
def test_predictions_without_a_network_have_figures_too(build, model, data, expected):
    assert expected <= set(build(f"model={model}", f"data={data}").figures())


def test_figures_show_inputs_and_held_out_points_of_the_first_test_series_for_any_seed(build):
    titles = []
    for seed in (0, 1):
        task = build(*SMALL, *FIXED, "data=periodic", "data.observed=0.3", f"seed={seed}")
        figure = task.figures()["series"]
        titles.append([axes.get_title(loc="left") for axes in figure.axes])
        drawn = {line.get_label(): len(line.get_xdata()) for line in figure.axes[0].lines}
        assert (drawn["observed"], drawn["held out from the model"]) == (30, 70)
        assert len(figure.axes[0].collections) > 0  # the band over latent samples
    assert titles[0] == titles[1] == [f"series {number}" for number in task._splits["test"].ids[:6].tolist()]
    titles = [axes.get_title(loc="left") for axes in task.figures("validation")["series"].axes]
    assert titles == [f"series {number}" for number in task._splits["validation"].ids[:6].tolist()]


def test_examples_are_the_first_test_series_of_each_label(build):
    task = build(*SMALL, *FIXED)
    test, shown = task._splits["test"], task.examples()
    firsts = [int((test.labels == label).nonzero()[0]) for label in (0, 1)]
    assert [one.label for one in shown] == [f"series {test.ids[first]}" for first in firsts]
    assert shown[0].predictions.shape == (2, 200, 2)
    assert len(build(*RNN, "data=periodic").examples()) == 1


def test_a_training_records_every_metric_of_its_task(tiny):
    overrides = [*SMALL, *FIXED, "model.encoder=ode_rnn", "model.encoder_field_units=5", "model.classify=true"]
    overrides += [*tiny, "trainer.epochs=1"]
    record = read_run(train_run(compose(overrides), overrides).folder)
    names = ["loss", "nll_nats", "kl_nats", "elbo_nats", "mse", "mse_per_feature", "rmse_interpolation"]
    names += ["rmse_extrapolation", "accuracy", "auc", "nfe", "encoder_nfe", "decoder_nfe"]
    tags = [f"final/test_{name}" for name in names]
    tags += ["final/nfe_forward", "final/peak_mib", "final/step_ms", "final/minutes"]
    assert all(np.isfinite(record.summary[tag]) for tag in tags)
    assert {path.name for path in (record.path / FIGURES).iterdir()} >= {"series.png", "latents.png", "error.png"}
    assert record.manifest["data"]["splits"]["test"]["series"] == 200


def test_data_of_another_kind_are_refused(build, monkeypatch):
    line = "data=mnist5k: model=rnn is for task time_series; choose data from spirals, periodic, hopper"
    with pytest.raises(UsageError, match=line):
        build(*RNN, "data=mnist5k")
    potential = DATA["potential_1"](samples=64, fresh=True, validation=40, test=40, seed=0)
    monkeypatch.setitem(DATA, "periodic", lambda **options: potential)
    with pytest.raises(UsageError, match="data=periodic: task=time_series needs SeriesData"):
        build(*RNN, "data=periodic")


@pytest.mark.slow
def test_training_learns_to_follow_the_spirals(build):
    task = build("model=latent_ode", "data.train_limit=null", "data.validation=80", "trainer.batch_size=90")
    before = task.evaluate("validation")
    optimizer = torch.optim.Adam(task.model.parameters(), 1e-2)
    for step in range(250):
        optimizer.zero_grad()
        task.loss(task.batch(step)).value.backward()
        optimizer.step()
    after = task.evaluate("validation")
    assert after["rmse_interpolation"] < 0.4 * before["rmse_interpolation"]
    assert after["elbo_nats"] > before["elbo_nats"]
