"""Event files as TensorBoard's reader and web server read them."""

import dataclasses
import shlex
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.util.tensor_util import make_ndarray

from odebench.config.schema.solver import GRADIENTS, SolverSettings
from odebench.record import layout
from odebench.record.tensorboard import _quoted, hparam_columns, hparams
from odebench.record.writer import RunWriter


def load(folder: Path) -> EventAccumulator:
    everything = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0, "compressedHistograms": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def points(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 6)) for event in events.Scalars(tag)]


def points_of_the_server(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Read events as TensorBoard's server does without its fast loader, with another accumulator than scripts use."""
    events = plugin_event_accumulator.EventAccumulator(str(folder), tensor_size_guidance={"scalars": 0}).Reload()
    return [(event.step, round(make_ndarray(event.tensor_proto).item(), 6)) for event in events.Tensors(tag)]


def hparams_data(events: EventAccumulator) -> dict[str, plugin_data_pb2.HParamsPluginData]:
    content = events.PluginTagToContent("hparams")
    return {tag.rpartition("/")[2]: plugin_data_pb2.HParamsPluginData.FromString(data) for tag, data in content.items()}


def test_numbers_histograms_and_figures_read_back(tmp_path, create):
    with create(tmp_path / "run") as record:
        record.log(10, {"train/loss": 0.5, "nfe/forward": 26, "val/accuracy": float("nan")})
        record.log(20, {"train/loss": 0.25})
        record.log_histogram("steps/size", np.array([0.1, 0.2, 0.7, np.inf]), 20)
        record.log_histogram("steps/size", [], 30)
        record.write_figure("confusion", Figure(figsize=(4, 2)), 20)
    events = load(record.path)
    assert points(events, "train/loss") == [(10, 0.5), (20, 0.25)]
    assert points(events, "nfe/forward") == [(10, 26.0)]
    assert events.SummaryMetadata("nfe/forward").summary_description.startswith("NFE of the forward pass of one")
    assert np.isnan(events.Scalars("val/accuracy")[0].value)
    (histogram,) = events.Histograms("steps/size")
    assert histogram.step == 20
    assert histogram.histogram_value.num == 3
    assert histogram.histogram_value.max == 0.7
    (image,) = events.Images("figures/confusion")
    assert (image.step, image.width, image.height) == (20, 600, 300)
    assert image.encoded_image_string == (record.path / "figures/confusion.png").read_bytes()


def test_settings_and_command_are_written_as_text(tmp_path, create):
    create(tmp_path / "run").close()
    events = load(tmp_path / "run")
    shown = {
        tag: events.Tensors(f"about/{tag}/text_summary")[0].tensor_proto.string_val[0]
        for tag in ("command", "settings")
    }
    assert shown["command"].decode().startswith("    odebench train")
    assert "\n      rtol: 0.001\n" in shown["settings"].decode()


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("tol=1e-3", "tol=1e-3"), ("tags=[a,b]", '"tags=[a,b]"'), ("name='it is'", "\"name='it is'\""), ("$x", "'$x'")],
)
def test_the_command_is_quoted_readably(word, quoted):
    assert _quoted(word) == quoted
    assert shlex.split(quoted) == [word]


def test_what_is_logged_once_comes_after_all_curves(tmp_path, create):
    with create(tmp_path / "run") as record:
        record.log(10, {"val/loss": 0.5, "time/step_ms": 1.0, "test/loss": 0.4})
        record.write_summary({"best/accuracy": 0.5, "final/minutes": 3.0})
    tags = sorted(load(record.path).Tags()["scalars"])
    assert tags == [
        "time/step_ms",
        "val/loss",
        "when_done/best/accuracy",
        "when_done/final/minutes",
        "when_done/test/loss",
    ]


def test_charts_pair_related_tags(tmp_path, create):
    create(tmp_path / "run").close()
    (layout,) = load(tmp_path / "run").Tensors("custom_scalars__config__")
    read = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in read.category for chart in category.chart}
    assert charts["NFE: forward against backward"] == ["nfe/forward$", "nfe/backward$"]
    assert charts["loss: train against validation"] == ["train/loss$", "val/loss$"]
    assert charts["accuracy: train against validation"] == ["train/accuracy$", "val/accuracy$"]
    assert charts["Steps: accepted against rejected"] == ["steps/accepted$", "steps/rejected$"]


def test_a_run_has_only_charts_of_the_quantities_it_measures():
    quantities = ["loss", "nll_nats", "nfe", "sampling_nfe", "samples_per_s"]
    assert list(layout.chart_layout(quantities)) == ["Learning", "Solver"]
    assert list(layout.chart_layout(["loss", "mse", "a plugin's own"])["Learning"]) == [
        "loss: train against validation",
        "mse: train against validation",
    ]
    # A residual network has no solver.
    assert "Solver" not in layout.chart_layout(["loss", "accuracy"])


def test_hparams_are_in_the_run_itself_with_one_type_per_key(tmp_path, create):
    with create(tmp_path / "run") as record:
        record.write_status("done")
    assert len(list(record.path.glob(layout.EVENT_FILES))) == 1
    assert {path.name for path in record.path.iterdir() if path.is_dir()} == {"checkpoints", "figures"}
    data = hparams_data(load(record.path))
    assert set(data) == {"experiment", "session_start_info", "session_end_info"}
    types = {info.name: info.type for info in data["experiment"].experiment.hparam_infos}
    assert types["solver.rtol"] == api_pb2.DATA_TYPE_FLOAT64
    assert types["solver.first_step"] == api_pb2.DATA_TYPE_STRING
    assert types["data.augment"] == api_pb2.DATA_TYPE_BOOL
    shown_first = [info.name for info in data["experiment"].experiment.hparam_infos if info.differs]
    assert sorted(shown_first) == sorted(layout.FIRST_HPARAMS)
    kinds = {
        "string_value": api_pb2.DATA_TYPE_STRING,
        "number_value": api_pb2.DATA_TYPE_FLOAT64,
        "bool_value": api_pb2.DATA_TYPE_BOOL,
    }
    start = data["session_start_info"].session_start_info
    assert start.group_name == f"run in {tmp_path.name}"
    assert {name: kinds[value.WhichOneof("kind")] for name, value in start.hparams.items()} == {
        name: types[name] for name in start.hparams
    }
    assert start.hparams["solver.rtol"].number_value == 1e-3
    metrics = {info.display_name: info.name.tag for info in data["experiment"].experiment.metric_infos}
    costs = ["final/nfe_forward", "final/nfe_backward", "final/peak_mib", "final/minutes"]
    assert [*metrics][:6] == ["best/accuracy", "final/test_accuracy", *costs]
    assert set(metrics) == set(layout.summary_tags("classification")) >= {"final/test_nfe", "final/minutes"}
    assert metrics["best/accuracy"] == "when_done/best/accuracy"


def test_a_column_has_the_same_type_in_every_run_and_null_is_left_out():
    first = hparams({"solver": {"first_step": None, "steps": 20, "rtol": None}, "seed": 1})
    other = hparams({"solver": {"first_step": 0.1, "steps": None, "rtol": 1e-3}, "seed": 2})
    assert first == {"solver.steps": 20.0, "seed": 1.0}
    assert other == {"solver.first_step": "0.1", "solver.rtol": 1e-3, "seed": 2.0}
    # A column of true and false keeps its type where words are allowed, too.
    compiled = [hparams({"solver": {"compile": value}}) for value in (False, True, "solve")]
    assert compiled == [{"solver.compile": value} for value in (False, True, True)]
    mine = hparams({"model": {"name": "mine", "layers": [2, 3], "gate": True, "depth": 3}, "data": {"root": "/x"}})
    assert mine == {"model.name": "mine", "model.layers": "2, 3", "model.gate": True, "model.depth": 3.0}


def test_every_setting_of_the_models_has_a_column():
    paths = list((Path(__file__).parents[2] / "configs").glob("model/*.yaml"))
    assert paths
    for path in paths:
        option = OmegaConf.load(path)
        for name, value in OmegaConf.to_container(option.model).items():
            wanted = bool if isinstance(value, bool) else float if isinstance(value, int | float) else str
            if isinstance(value, str) and value.startswith("${"):  # the value of another setting, of any type
                continue
            assert value is None or hparam_columns(option.task)[f"model.{name}"] is wanted, name


def test_data_have_the_columns_of_their_task():
    density = hparam_columns("density")
    assert {"data.noise", "data.fresh", "data.samples"} <= set(density)
    assert not {"data.augment", "data.train_limit", "data.observed", "data.root"} & set(density)
    assert hparam_columns("time_series")["data.observed"] is float
    # Density estimation of images has the columns of image data, which the task's other data sets lack.
    shown = hparams({"task": "density", "data": {"name": "mnist", "augment": False, "root": "/x", "validation": 5}})
    assert shown == {"data.name": "mnist", "data.augment": False}


def test_every_setting_of_solvers_and_gradients_is_shown():
    """Settings shared by several methods have a column; options of one method appear with its runs."""
    for group, kinds in {"solver": [SolverSettings], "gradient": GRADIENTS.values()}.items():
        for field in {field.name for kind in kinds for field in dataclasses.fields(kind)} - {"options"}:
            assert f"{group}.{field}" in hparam_columns("density")
    assert hparams({"solver": {"name": "alf", "damping": 0.9}})["solver.damping"] == 0.9


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("done", api_pb2.STATUS_SUCCESS),
        ("failed", api_pb2.STATUS_FAILURE),
        ("diverged", api_pb2.STATUS_FAILURE),
        ("interrupted", api_pb2.STATUS_UNKNOWN),
        ("running", None),
    ],
)
def test_the_table_shows_how_a_run_ended(tmp_path, create, status, shown):
    with create(tmp_path / "run") as record:
        record.write_status(status)
    end = hparams_data(load(record.path)).get("session_end_info")
    assert (end and end.session_end_info.status) == shown


def test_no_step_shows_twice_after_reopening_and_the_new_end_counts(tmp_path, create):
    with create(tmp_path / "run") as record:
        for step in (10, 20, 30, 40):
            record.log(step, {"train/loss": 1.0})
            record.log_histogram("steps/size", [0.1], step)
        record.write_summary({"best/accuracy": 0.5})
        record.write_status("failed")
    with RunWriter.reopen(record.path, 20) as record:
        for step in (30, 40, 50):
            record.log(step, {"train/loss": 0.5})
        record.write_summary({"best/accuracy": 0.9})
        record.write_status("done")
    events = load(record.path)
    assert points(events, "train/loss") == [(10, 1.0), (20, 1.0), (30, 0.5), (40, 0.5), (50, 0.5)]
    assert points_of_the_server(record.path, "train/loss") == points(events, "train/loss")
    assert [event.step for event in events.Histograms("steps/size")] == [10, 20]
    assert points(events, layout.dashboard_tag("best/accuracy")) == [(50, 0.9)]
    assert hparams_data(events)["session_end_info"].session_end_info.status == api_pb2.STATUS_SUCCESS
    assert len(events.Tensors("custom_scalars__config__")) == 1


def test_a_run_killed_while_writing_an_event_resumes(tmp_path, create):
    with create(tmp_path / "run") as record:
        record.log(10, {"train/loss": 1.0})
        record.log(20, {"train/loss": 1.0})
    (path,) = record.path.glob(layout.EVENT_FILES)
    path.write_bytes(path.read_bytes()[:-5])
    with RunWriter.reopen(record.path, 10) as record:
        record.log(20, {"train/loss": 0.5})
        record.write_status("done")
    events = load(record.path)
    assert points(events, "train/loss") == [(10, 1.0), (20, 0.5)]
    assert points_of_the_server(record.path, "train/loss") == points(events, "train/loss")
    assert "session_end_info" in hparams_data(events)


def test_events_are_readable_after_flush_while_the_run_is_open(tmp_path, create):
    with create(tmp_path / "run") as record:
        record.log(10, {"train/loss": 1.0})
        record.flush()
        assert points(load(record.path), "train/loss") == [(10, 1.0)]


def serve(logdir: Path):
    """A client of TensorBoard's web server, without a socket."""
    from tensorboard.backend import application
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.core.core_plugin import CorePlugin
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin
    from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin
    from werkzeug.test import Client

    events = EventMultiplexer(tensor_size_guidance={"scalars": 100}).AddRunsFromDirectory(str(logdir)).Reload()
    flags = Namespace(
        generic_data="auto",
        logdir=str(logdir),
        logdir_spec="",
        path_prefix="",
        samples_per_plugin={},
        window_title="",
    )
    plugins = [CorePlugin, ScalarsPlugin, CustomScalarsPlugin, HParamsPlugin]
    return Client(application.TensorBoardWSGIApp(flags, plugins, MultiplexerDataProvider(events, str(logdir))))


def test_the_web_server_shows_one_run_each_with_hparams_and_layout(tmp_path, create):
    for name, accuracy, status in (("a", 0.75, "done"), ("b", 0.5, "diverged")):
        with create(tmp_path / name) as record:
            record.log(10, {"train/loss": 0.5, "nfe/forward": 26})
            record.write_summary({"best/accuracy": accuracy})
            record.write_status(status)
    client = serve(tmp_path)
    assert client.get("/data/runs").json == ["a", "b"]

    layout = client.get("/data/plugin/custom_scalars/layout").json
    assert [category["title"] for category in layout["category"]] == ["Learning", "Solver"]
    series = client.get("/data/plugin/scalars/scalars?run=a&tag=nfe/forward").json
    assert [point[1:] for point in series] == [[10, 26.0]]

    request = {
        "startIndex": 0,
        "sliceSize": 10,
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_FAILURE"],
        "colParams": [{"metric": {"tag": "when_done/best/accuracy", "group": ""}, "order": "ORDER_DESC"}],
    }
    table = client.post("/data/plugin/hparams/session_groups", json=request).json
    assert [group["sessions"][0]["name"] for group in table["sessionGroups"]] == ["a", "b"]
    first, second = table["sessionGroups"]
    statuses = [group["sessions"][0]["status"] for group in (first, second)]
    assert statuses == ["STATUS_SUCCESS", "STATUS_FAILURE"]
    assert first["hparams"]["gradient.name"] == "adjoint"
    assert first["metricValues"][0]["value"] == 0.75
