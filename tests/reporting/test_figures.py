import itertools
import json
import math
import random

import pytest

from odebench.errors import UsageError
from odebench.plots.comparison import MAX_LINES
from odebench.reporting import figures
from odebench.reporting.lines import MAX_PANELS, mean_curves, named_groups, pareto_front
from odebench.reporting.runs import collect_runs


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn_with_labelled_axes(name, request):
    figure = figures.draw(name, collect_runs([request.getfixturevalue("matched" if name == "figure4" else "corpus")]))
    for axes in [one for one in figure.axes if one.get_label() != "<colorbar>"]:
        assert axes.get_title(loc="left")
        assert axes.get_xlabel()
        assert axes.get_ylabel() or name == "gradient-error"
        assert axes.lines or axes.images


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_without_data_says_how_to_make_them(name, record, runs):
    record(gradient__name="backprop", summary={"final/nfe_backward": 0})
    with pytest.raises(UsageError, match=f"^figure {name} needs .*odebench (sweep|train|eval|bench)"):
        figures.draw(name, collect_runs([runs]))


def test_an_unknown_figure_suggests_the_nearest_name(record, runs):
    record()
    with pytest.raises(UsageError, match="did you mean pareto"):
        figures.draw("paretto", collect_runs([runs]))


def test_the_result_is_the_mean_over_seeds_against_the_mean_cost(corpus, points):
    (axes,) = figures.draw("result-nfe", collect_runs([corpus])).axes
    drawn = points(axes)["adjoint"]
    assert dict(drawn) == pytest.approx({nfe + 0.5: 90 + (nfe + 0.5) / 10 for nfe in (20, 30, 40)})
    assert axes.get_ylabel() == "validation accuracy (%)"
    assert "1e-2" in {text.get_text() for text in axes.texts}


def test_the_published_value_is_a_dashed_line_and_of_the_test_split(corpus, points):
    (axes,) = figures.draw("result-time", collect_runs([corpus], split="test")).axes
    (reference,) = [line for line in axes.lines if line.get_label().startswith("published")]
    assert list(reference.get_ydata()) == [99.58, 99.58]
    assert "from memory" in reference.get_label()
    assert reference.get_linestyle() != "-"
    assert points(axes)["adjoint"][0][1] == 94.0
    assert axes.get_ylabel() == "test accuracy (%)"


def test_a_backward_pass_without_evaluations_is_omitted(corpus, points):
    (axes,) = figures.draw("backward-forward", collect_runs([corpus])).axes
    drawn = points(axes)
    assert "backprop" not in drawn
    assert sorted(drawn["adjoint"]) == [(20.5, 30.75), (30.5, 45.75), (40.5, 60.75)]
    assert drawn["published: about half (Chen et al. 2018, Figure 3c)"] == [(0, 0), (40.5, 20.25)]


def test_nfe_and_error_of_evaluations_are_drawn_at_their_tolerance(corpus, points):
    collection = collect_runs([corpus])
    after = figures.draw("nfe-tolerance", collection).axes[2]
    assert [*points(after).values()] == [[(1e-3, 9), (1e-1, 9)]]
    (axes,) = figures.draw("error-tolerance", collection).axes
    assert points(axes)["tol 0.0001, backprop"] == [(1e-3, 2e-3), (1e-1, 0.2)]


def test_fixed_steps_are_labelled_and_have_no_tolerance(record, runs, points):
    for steps, tol in ((None, 1e-2), (None, 1e-4), (8, 1e-3), (20, 1e-3)):
        record(tol=tol, solver__steps=steps, summary={"final/nfe_forward": steps or -10 * math.log10(tol)})
    collection = collect_runs([runs])
    (axes,) = figures.draw("result-nfe", collection).axes
    assert {text.get_text() for text in axes.texts} >= {"1e-2", "1e-4", "8 steps", "20 steps"}
    forward = figures.draw("nfe-tolerance", collection).axes[0]
    assert sorted(point for line in points(forward).values() for point in line) == [(1e-4, 40), (1e-2, 20)]


def test_runs_that_differ_in_other_settings_are_separate_lines(record, runs, points):
    """Tolerance and steps would suffice to distinguish these runs."""
    made = [(None, 1e-2, 9, 20), (None, 1e-3, 9, 30), (None, 1e-4, 1, 40), (8, 1e-3, 9, 8), (20, 1e-3, 9, 21)]
    for steps, tol, epochs, nfe in made:
        record(tol=tol, solver__steps=steps, trainer__epochs=epochs, summary={"final/nfe_forward": nfe})
    (axes,) = figures.draw("result-nfe", collect_runs([runs])).axes
    assert {label: [x for x, _ in line] for label, line in points(axes).items()} == {
        "epochs 9, adaptive": [30, 20],
        "epochs 9, fixed steps": [8, 21],
        "epochs 1": [40],
    }


def test_two_experiments_on_the_same_data_are_two_lines(record, runs, points):
    for experiment, tol in itertools.product(("one", "two"), (1e-2, 1e-3)):
        record(tol=tol, experiment=experiment, optim__lr=0.1 if experiment == "one" else 0.2)
    assert sorted(points(figures.draw("result-nfe", collect_runs([runs])).axes[0])) == ["one", "two"]


@pytest.mark.parametrize("name", ["time-nfe", "backward-forward", "memory-depth"])
def test_costs_have_a_panel_for_each_data_set(name, record, runs):
    for (data, model), tol in itertools.product((("mnist5k", "odenet"), ("two_circles", "cnf")), (1e-2, 1e-3)):
        record(data__name=data, model__name=model, tol=tol)
    titles = [axes.get_title(loc="left").partition(":")[0] for axes in figures.draw(name, collect_runs([runs])).axes]
    assert sorted(titles) == ["mnist5k", "two_circles"]


def intervals(line):
    """Start, end and height of the intervals that a line draws."""
    x, y = line.get_data()
    return [*zip(x[::3], x[1::3], y[::3], strict=True)]


def test_step_sizes_have_one_panel_per_model(record, runs):
    for model, sizes in (("odenet", [0.5, 0.5]), ("cnf", [-5.0, -4.0])):
        (record(model__name=model) / "steps.json").write_text(json.dumps({"solves": [sizes]}))
    cnf, odenet = figures.draw("step-sizes", collect_runs([runs])).axes
    assert [*map(intervals, cnf.lines)] == [[(0.0, -5.0, 5.0), (-5.0, -9.0, 4.0)]]
    assert [*map(intervals, odenet.lines)] == [[(0.0, 0.5, 0.5), (0.5, 1.0, 0.5)]]


def test_evaluations_have_one_line_per_gradient_mode(record, runs, points):
    path = record(gradient__name="adjoint")
    made = [("adjoint", 1e-2, 1e-2, 2.0), ("checkpoint", 1e-2, 0.0, 3.0), ("adjoint", 1e-4, 1e-4, 4.0)]
    step = {"step_solver": "dopri5", "output_error": 0.5}
    lines = [
        {"overrides": [f"gradient={mode}", f"tol={tol}"], "step_tol": tol, "nfe": nfe} | step
        | {"gradient_error": 2 * tol, "gradient_error_discrete": error}
        for mode, tol, error, nfe in made
    ]  # fmt: skip
    (path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    collection = collect_runs([runs])
    (axes,) = figures.draw("error-tolerance", collection).axes
    drawn = points(axes)
    assert drawn["dopri5, adjoint"] == [(1e-4, 0.5), (1e-2, 0.5)]
    assert drawn["dopri5, checkpoint"] == [(1e-2, 0.5)]
    discrete, exact = figures.draw("gradient-tolerance", collection).axes
    assert points(discrete) == {"adjoint, dopri5": [(1e-4, 1e-4), (1e-2, 1e-2)]}  # equal gradients have no error
    assert points(exact)["checkpoint, dopri5"] == [(1e-2, 2e-2)]
    assert discrete.get_title(loc="left") == "gradient: against the discrete solve"
    assert exact.get_title(loc="left") == "gradient: against float64 at 1e-9"
    assert exact.get_ylabel() == "relative error of the gradient"


def test_evaluations_with_fixed_steps_are_a_line_along_the_steps(record, runs, points):
    made = [(f"solver.steps={steps}", 4 * steps, steps**-4.0) for steps in (8, 2, 4)]
    lines = [
        {"overrides": ["solver=rk4", steps], "solver": "rk4", "tol": None, "nfe": nfe, "output_error": error}
        for steps, nfe, error in made
    ]
    (record() / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (error,) = figures.draw("figure3", collect_runs([runs])).axes
    assert points(error) == {"rk4": [(8, 2**-4), (16, 4**-4), (32, 8**-4)]}
    with pytest.raises(UsageError, match="needs evaluations with output_error at two tolerances"):
        figures.draw("error-tolerance", collect_runs([runs]))


def test_the_one_run_that_was_evaluated_is_drawn_among_many(record, runs, points):
    for width in range(MAX_LINES + 1):
        record(model__width=width)
    path = record(model__name="cnf")
    lines = [{"overrides": [f"tol={tol}"], "nfe": 9, "output_error": tol} for tol in (1e-2, 1e-3)]
    (path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (axes,) = figures.draw("error-tolerance", collect_runs([runs])).axes
    assert [len(drawn) for label, drawn in points(axes).items() if "tolerance" not in label] == [2]


def test_results_of_other_data_are_not_compared(record, runs):
    for observed, tol, loss in ((30, 1e-2, 42.0), (30, 1e-3, 41.0), (100, 1e-2, 73.0), (100, 1e-3, 72.0)):
        data = {"name": "spirals", "observed": observed, "train_limit": observed}
        nfe = {"final/nfe_forward": -10 * math.log10(tol), "best/loss": loss}
        record(tol=tol, data=data, task="time_series", trainer__objective="val/loss", summary=nfe)
    few, many = figures.draw("result-nfe", collect_runs([runs])).axes
    assert few.get_title(loc="left") == "spirals, observed 30: result against NFE"
    assert few.lines[0].get_xydata().tolist() == [[30, 41], [20, 42]]
    assert many.lines[0].get_xydata().tolist() == [[30, 72], [20, 73]]


def test_evaluations_with_other_settings_are_a_separate_line(record, runs, points):
    made = [("tol=1e-2",), ("tol=1e-4",), ("tol=1e-3", "solver.max_step=0.1"), ("tol=1e-4", "solver.max_step=0.1")]
    lines = [{"overrides": arguments, "nfe": 9, "output_error": 1e-3 * len(arguments)} for arguments in made]
    (record() / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (axes,) = figures.draw("error-tolerance", collect_runs([runs])).axes
    drawn = points(axes)
    assert drawn["dopri5"] == [(1e-4, 1e-3), (1e-2, 1e-3)]
    assert drawn["dopri5, solver.max_step=0.1"] == [(1e-4, 2e-3), (1e-3, 2e-3)]


def test_labels_contain_only_keys_that_distinguish_the_groups(record, runs):
    models = [("odenet", "mnist5k", 1e-3), ("cnf", "two_moons", 1e-5)]
    for (model, data, tol), mode in itertools.product(models, ("adjoint", "backprop")):
        record(model__name=model, data__name=data, tol=tol, gradient__name=mode)
    labels = [label for label, _ in named_groups(collect_runs([runs]), lambda group: group)]
    assert sorted(labels) == ["cnf, adjoint", "cnf, backprop", "odenet, adjoint", "odenet, backprop"]


def test_labels_omit_settings_that_a_group_lacks(record, runs):
    for eval_tol in (None, 1e-5):
        record(eval_tol=eval_tol)
        record(eval_tol=eval_tol, gradient__name="backprop")
    labels = [label for label, _ in named_groups(collect_runs([runs]), lambda group: group)]
    assert sorted(labels) == ["adjoint", "adjoint, eval_tol 1e-05", "backprop", "backprop, eval_tol 1e-05"]


def study(solver, tol, nfe, nfe_backward):
    settings = {"overrides": [f"solver={solver}", f"tol={tol}"], "solver": solver, "tol": tol, "nfe": nfe}
    numbers = {"output_error": 2 * tol, "nfe_forward": nfe + 1, "nfe_backward": nfe_backward, "forward_ms": 3.0 * nfe}
    return json.dumps(settings | numbers) + "\n"


def test_figure_3_has_four_panels_of_one_trained_model(record, runs, points):
    rows = [{"step": 4 * epoch, "elapsed_s": 1.0, "nfe/forward": 10 + epoch} for epoch in range(4)]
    summary = {"best/step": 8, "best/epoch": 2}
    path = record(experiment="paper/mnist_odenet", data__name="mnist", rows=rows, summary=summary)
    lines = [("dopri5", 1e-1, 7, 99), ("dopri5", 1e-3, 20, 25), ("dopri5", 1e-1, 8, 11), ("adams", 1e-3, 12, 0)]
    (path / "evaluations.jsonl").write_text("".join(study(*line) for line in lines))
    error, time, backward, over = figures.draw("figure3", collect_runs([runs])).axes
    assert points(error) == {"dopri5": [(20, 2e-3), (8, 0.2)], "adams": [(12, 2e-3)]}  # the last of those made alike
    assert error.get_yscale() == "log"
    assert points(time)["dopri5"] == [(21, 60), (9, 24)]
    drawn = points(backward)
    assert (drawn["dopri5"], "adams" in drawn) == ([(21, 25), (9, 11)], False)
    assert drawn["published: about half (Chen et al. 2018, Figure 3c)"] == [(9, 4.5), (21, 10.5)]
    assert backward.get_xscale() == backward.get_yscale() == "log"
    assert points(over) == {"dopri5": [(0, 10), (1, 11), (2, 12), (3, 13)]}
    assert over.get_xlabel() == "epoch"
    record(model__name="rknet", rows=rows, summary=summary)  # of which nothing was evaluated
    error, *_, over = figures.draw("figure3", collect_runs([runs])).axes
    assert sorted(points(error)) == ["odenet, solved by adams", "odenet, solved by dopri5"]
    assert list(points(over)) == ["odenet, solved by dopri5"]


def test_figure_4_shows_the_divergence_from_each_target_by_the_size_of_the_models(matched, points, record):
    # A CNF with fewer parameters at the same width is not drawn.
    settings = {"task": "density", "trainer__objective": "val/kl_nats", "data__name": "potential_1"}
    record(model__name="cnf", model__width=2, model__hidden=7, summary={"best/kl_nats": 9.0}, **settings)
    first, second = figures.draw("figure4", collect_runs([matched])).axes
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("potential_1", "potential_2")
    assert points(first) == {
        "CNF": [(size, 1 + 1 / size) for size in (2, 8, 32)],
        "planar flow": [(size, 2 + 1 / size) for size in (2, 8, 32)],
    }
    assert first.get_ylabel() == "validation KL(q || p) (nats)"


def test_step_sizes_are_those_of_the_longest_solve_at_its_own_times(record, runs):
    steps = {"solves": [[1.0], [-5.0, -2.5, -2.5]], "starts": [0.0, 10.0], "rejected": [[], [[5.0, -5.0]]]}
    (record() / "steps.json").write_text(json.dumps(steps))
    (axes,) = figures.draw("step-sizes", collect_runs([runs])).axes
    assert intervals(axes.lines[0]) == [(10.0, 5.0, 5.0), (5.0, 2.5, 2.5), (2.5, 0.0, 2.5)]
    assert (axes.lines[1].get_label(), intervals(axes.lines[1])) == ("rejected steps", [(5.0, 0.0, 5.0)])
    assert "step sizes of solve 2 of 2" in axes.get_title(loc="left")
    assert axes.get_xlabel() == "t (time of the ODE)"


def test_step_sizes_start_where_the_step_before_ends(corpus):
    (axes,) = figures.draw("step-sizes", collect_runs([corpus])).axes
    assert [*map(intervals, axes.lines)] == [[(0.0, 0.25, 0.25), (0.25, 0.75, 0.5), (0.75, 1.0, 0.25)]]
    assert axes.get_xlabel().startswith("t since the start of the solve")  # older records lack it


def test_a_damaged_file_of_steps_raises_an_error(corpus):
    for path in corpus.glob("*/steps.json"):
        path.write_text("[]")
    with pytest.raises(UsageError, match="damaged"):
        figures.draw("step-sizes", collect_runs([corpus]))


def test_memory_of_residual_networks_is_drawn_at_their_number_of_blocks(record, runs, points):
    for blocks in (2, 4):
        summary = {"final/nfe_forward": None, "final/saved_mib": 10.0 * blocks}
        record(model__name="resnet", model__blocks=blocks, solver__name="none", summary=summary)
    peak, saved = figures.draw("memory-depth", collect_runs([runs])).axes
    assert [line.get_xydata().tolist() for line in peak.lines] == [[[2, 50], [4, 50]]]
    assert [line.get_xydata().tolist() for line in saved.lines] == [[[2, 20], [4, 40]]]
    assert points(peak) == points(saved) == {}  # one line needs no name, such as a gradient mode that all runs share


def test_curves_are_means_over_seeds_at_the_steps_that_all_have():
    rows = [[{"step": s, "nfe/forward": s + seed} for s in range(1, 4 + seed)] for seed in (0, 2)]
    (line,) = mean_curves({"one": rows, "none": [[]]}, "nfe/forward")
    assert (line.label, list(line.x), list(line.y)) == ("one", [1, 2, 3], [2, 3, 4])
    assert line.y_error == pytest.approx([math.sqrt(2)] * 3)


def test_the_result_over_training_is_the_mean_over_seeds_by_steps_and_by_minutes(corpus):
    by_step, by_time = figures.draw("result-training", collect_runs([corpus])).axes
    for axes, x in ((by_step, [2.0, 4.0]), (by_time, [2.25, 4.25])):
        line = next(line for line in axes.lines if line.get_label() == "tol 0.001, adjoint")
        assert list(line.get_xdata()) == x
        assert list(line.get_ydata()) == pytest.approx([83.0, 85.0])
        assert axes.get_ylabel() == "validation accuracy (%)"


def test_validations_of_a_long_training_are_not_smoothed(record, runs):
    record(rows=[{"step": s, "elapsed_s": s, "val/accuracy": s % 2} for s in range(200)])
    axes = figures.draw("result-training", collect_runs([runs])).axes[0]
    assert list(axes.lines[0].get_ydata()) == [0, 100] * 100


def test_the_running_mean_of_a_long_curve_keeps_a_straight_line():
    rows = [{"step": s, "nfe/forward": 2 * s} for s in range(300)]
    (line,) = mean_curves({"one": [rows]}, "nfe/forward")
    assert line.y[20:-20] == pytest.approx(2 * line.x[20:-20])


def test_the_pareto_front_is_what_no_other_beats():
    rng = random.Random(0)
    groups = [(rng.randrange(12), rng.randrange(12)) for _ in range(60)]
    for rises in (True, False):
        found = pareto_front(groups, lambda group: group[0], lambda group: float(group[1]), rises)
        better = (lambda a, b: a > b) if rises else (lambda a, b: a < b)
        beaten = {
            a
            for a, b in itertools.product(groups, groups)
            if (b[0] <= a[0] and better(b[1], a[1])) or (b[0] < a[0] and b[1] == a[1])
        }
        assert sorted(found) == sorted(set(groups) - beaten)


def test_too_many_lines_become_scatter_plots_and_too_many_curves_raise_an_error(record, runs, points):
    for width, mode in itertools.product(range(1, MAX_LINES + 2), ("adjoint", "backprop")):
        record(model__width=width, gradient__name=mode, summary={"final/nfe_forward": width})
    collection = collect_runs([runs])
    (axes,) = figures.draw("result-nfe", collection).axes
    assert {label: len(drawn) for label, drawn in points(axes).items()} == {"adjoint": 15, "backprop": 15}
    assert {line.get_linestyle() for line in axes.lines} == {"None"}
    with pytest.raises(UsageError, match=f"figure nfe-training: it can show {MAX_LINES} settings, .* 30;"):
        figures.draw("nfe-training", collection)


def test_each_data_set_and_loss_has_a_panel_and_models_keep_their_style(record, runs, points):
    density = {"task": "density", "trainer__objective": "val/nll_nats"}
    for data, model, tol in itertools.product(("two_moons", "pinwheel"), ("cnf", "ffjord"), (1e-2, 1e-3)):
        nll = (1 if data == "two_moons" else 9) + tol
        record(data__name=data, model__name=model, tol=tol, summary={"best/nll_nats": nll}, **density)
    for loss, tol in itertools.product(("elbo", "flow_matching"), (1e-2, 1e-3)):
        record(data__name="two_moons", loss__name=loss, tol=tol, trainer__objective="val/loss")
    figure = figures.draw("result-nfe", collect_runs([runs]))
    labels = [(one.get_title(loc="left"), one.get_ylabel()) for one in figure.axes]
    assert sorted(labels) == [
        ("pinwheel: result against NFE", "validation NLL (nats)"),
        ("two_moons: result against NFE", "validation NLL (nats)"),
        ("two_moons: result against NFE", "validation loss (ELBO, nats)"),
        ("two_moons: result against NFE", "validation loss (flow matching, nats)"),
    ]
    for one in figure.axes:
        values = [y for line in points(one).values() for _, y in line]
        assert max(values) - min(values) < 0.1
    looks = {(line.get_label(), line.get_color()) for one in figure.axes for line in one.lines if points(one)}
    assert len({label for label, _ in looks}) == len(looks)
    assert len(figures.draw("pareto", collect_runs([runs])).axes) == 4 * 3


def test_too_many_panels_raise_an_error(record, runs):
    for number in range(MAX_PANELS + 1):
        record(data__name=f"data{number}")
    with pytest.raises(UsageError, match=f"it can show {MAX_PANELS} combinations of data set and .* 25;"):
        figures.draw("result-nfe", collect_runs([runs]))


def test_too_many_benchmark_panels_raise_an_error_and_none_is_dropped(corpus, points):
    header, row = (corpus / "results.csv").read_text().splitlines()[:2]
    rows = [row.replace("conv", f"work{number}") for number in range(MAX_PANELS + 1)]
    (corpus / "results.csv").write_text("\n".join([header, *rows[:-1]]))
    assert len(figures.draw("gradient-error", collect_runs([corpus])).axes) == MAX_PANELS
    (corpus / "results.csv").write_text("\n".join([header, *rows]))
    with pytest.raises(UsageError, match=f"it can show {MAX_PANELS} combinations of case and .* 25;"):
        figures.draw("gradient-error", collect_runs([corpus]))


def test_runs_of_two_tasks_have_a_panel_for_each_objective(record, runs):
    for tol in (1e-2, 1e-3):
        record(tol=tol)
        density = {"best/nll_nats": 1.5, "best/accuracy": None}
        record(tol=tol, task="density", model__name="cnf", trainer__objective="val/nll_nats", summary=density)
    figure = figures.draw("result-nfe", collect_runs([runs]))
    assert [axes.get_ylabel() for axes in figure.axes] == ["validation accuracy (%)", "validation NLL (nats)"]


def test_a_published_value_is_written_at_its_line_and_its_source_in_the_legend(corpus):
    figure = figures.draw("result-nfe", collect_runs([corpus], split="test"))
    assert "ODE-Net: 0.42 % error" in {text.get_text() for text in figure.axes[0].texts}
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(named) == ["adjoint", "backprop", "published, test: Chen et al. 2018, Table 1 (from memory)"]


def test_tolerances_are_labelled_only_on_lines_with_several(record, runs):
    for width, tol in ((8, 1e-2), (8, 1e-3), (16, 1e-4)):
        record(model__width=width, tol=tol, summary={"final/nfe_forward": -10 * math.log10(tol)})
    (axes,) = figures.draw("result-nfe", collect_runs([runs])).axes
    assert {text.get_text() for text in axes.texts} == {"1e-2", "1e-3"}


def test_the_pareto_front_of_one_sweep_differs_from_its_other_settings(record, runs, points):
    for tol, accuracy in ((1e-2, 0.9), (1e-3, 0.8), (1e-4, 0.7)):
        nfe = {"final/nfe_forward": -10 * math.log10(tol)}
        record(tol=tol, summary=nfe | {"best/accuracy": accuracy})
    figure = figures.draw("pareto", collect_runs([runs]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["settings", "Pareto front"]
    drawn = points(figure.axes[0])
    assert drawn["Pareto front"] == [(20, 90)]
    assert len(drawn["settings"]) == 3
    (front,) = [one for one in figure.axes[0].lines if one.get_label() == "Pareto front"]
    assert front.get_marker() == "o"
    assert {text.get_text() for text in figure.axes[0].texts} == {"1e-2"}


def test_a_heat_map_has_the_mean_nfe_of_each_epoch_at_each_tolerance(record, runs):
    for tol, nfe in ((1e-2, 10), (1e-4, 30)):
        rows = [{"step": step, "elapsed_s": 1.0, "nfe/forward": nfe + step} for step in (2, 4, 6, 8)]
        record(tol=tol, rows=rows, summary={"best/step": 8, "best/epoch": 2})
    axes = figures.draw("nfe-heatmap", collect_runs([runs])).axes[0]
    assert axes.images[0].get_array().tolist() == [[13, 17], [33, 37]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0.01", "0.0001"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2"]
    record(tol=1e-2, model__name="rknet")
    assert len(figures.draw("nfe-heatmap", collect_runs([runs])).axes) == 2  # one map and the colour bar
