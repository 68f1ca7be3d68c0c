"""Write the TensorBoard event files of a run into the run's folder.

For the HParams table, the run's own writer writes three protos: experiment, session start and session end.
``SummaryWriter.add_hparams`` would open another writer, and TensorBoard would show each run as two runs.
"""

import io
import math
import shlex
import struct
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from odebench.config.schema.data import DATA
from odebench.config.schema.losses import DYNAMICS
from odebench.config.schema.models import MODELS
from odebench.config.schema.solver import GRADIENTS, SolverSettings
from odebench.record import layout
from odebench.record.files import write_atomically

FLUSH_S = 20

_TYPES = {str: api_pb2.DATA_TYPE_STRING, float: api_pb2.DATA_TYPE_FLOAT64, bool: api_pb2.DATA_TYPE_BOOL}
# Status of an ended run -> its status in the HParams table. Unknown: the run can resume.
_SESSION_STATUSES = {
    "done": api_pb2.STATUS_SUCCESS,
    "diverged": api_pb2.STATUS_FAILURE,
    "failed": api_pb2.STATUS_FAILURE,
    "interrupted": api_pb2.STATUS_UNKNOWN,
    "timeout": api_pb2.STATUS_UNKNOWN,
}

# Events that a resumed run writes again.
_REWRITTEN_TAGS = (
    metadata.SESSION_END_INFO_TAG,
    metadata.SESSION_START_INFO_TAG,
    metadata.EXPERIMENT_TAG,
    "custom_scalars__config__",
)

HParam = str | float | bool
# Settings that do not affect the training, and solver.options: a field that holds settings, but is not one itself.
_EXCLUDED_COLUMNS = {
    "data.root",
    "data.download",
    "data.validation",
    "data.test",
    "data.random_state",
    "solver.options",
}


def open_writer(
    folder: Path, settings: Mapping[str, Any], overrides: Sequence[str] = (), quantities: Sequence[str] = ()
) -> SummaryWriter:
    """Open a writer in a new run's folder, and write the description of the run.

    The description has the chart layout for the quantities, the HParams of the resolved settings, and the settings and
    the command as text.
    """
    # purge_step is needed here too: TensorBoard's Python loader ignores the first session start that it reads.
    writer = SummaryWriter(str(folder), flush_secs=FLUSH_S, purge_step=0)
    _write_start(writer, _session_group(folder), settings, quantities)
    command = " ".join(map(_quoted, ["odebench", "train", *overrides]))
    for tag, text in {"about/command": command, "about/settings": yaml.safe_dump(dict(settings))}.items():
        writer.add_text(tag, "".join(f"    {line}\n" for line in text.splitlines()))  # a Markdown code block
    return writer


def reopen_writer(
    folder: Path, settings: Mapping[str, Any], step: int, quantities: Sequence[str] = ()
) -> SummaryWriter:
    """Open a writer that continues after `step`.

    TensorBoard then ignores events that the files already hold for later steps or for the run's end. The description of
    the run is written again: its settings may have changed, and an older version may have listed other metrics.
    """
    for path in sorted(folder.glob(layout.EVENT_FILES)):
        _remove_events(path, _REWRITTEN_TAGS)
    writer = SummaryWriter(str(folder), flush_secs=FLUSH_S, purge_step=step + 1)
    _write_start(writer, _session_group(folder), settings, quantities)
    return writer


def write_end(writer: SummaryWriter, status: str) -> None:
    """Write to the HParams table how the run ended. Does nothing if the status is not that of an ended run."""
    if status in _SESSION_STATUSES:
        end = plugin_data_pb2.SessionEndInfo(status=_SESSION_STATUSES[status], end_time_secs=time.time())
        _write_hparams(writer, metadata.SESSION_END_INFO_TAG, session_end_info=end)


def write_scalar(writer: SummaryWriter, tag: str, value: float, step: int, described: bool) -> None:
    """Add a number. described: with the meaning of its tag, which TensorBoard reads with the first number of a tag."""
    summary = Summary.Value(tag=layout.dashboard_tag(tag), simple_value=value)
    if described and tag in layout.TAGS:
        summary.metadata.plugin_data.plugin_name = "scalars"
        summary.metadata.summary_description = describe_tag(tag)
    _add(writer, summary, step)


def write_image(writer: SummaryWriter, tag: str, encoded: bytes, step: int) -> None:
    """Add the bytes of a PNG or GIF file as an image."""
    is_gif = encoded.startswith(b"GIF")
    width, height = struct.unpack("<HH", encoded[6:10]) if is_gif else struct.unpack(">II", encoded[16:24])
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=encoded)
    _add(writer, Summary.Value(tag=tag, image=image), step)


def hparams(settings: Mapping[str, Any]) -> dict[str, HParam]:
    """Return a run's values in the HParams table, by dotted name. Each has the type of its column; nulls are left out.

    The values are those of the ``hparam_columns`` of the task, and of all other settings of model, data and solver.
    Others exist for plugins, for images whose density is learnt, and for options of a solver's method.
    """
    flat = _flatten(settings)
    extra = {
        name: _hparam_type(value) for name, value in flat.items() if name.startswith(("model.", "data.", "solver."))
    }
    columns = _without_excluded({**extra, **hparam_columns(str(flat.get("task")))})
    found = {}
    for name, kind in columns.items():
        value = _to_hparam(flat.get(name), kind)
        if value is not None:
            found[name] = value
    return found


def hparam_columns(task: str) -> dict[str, type[HParam]]:
    """Return the columns of a task's HParams table, with their types; see `layout.HPARAMS`."""
    columns: dict[str, type[HParam]] = {}
    choices: dict[str, Iterable[type[Any]]] = {
        "model": [model for model in MODELS.values() if task in model.tasks],
        "data": [data for data in DATA.values() if data.tasks[0] == task],
        "solver": [SolverSettings],
        "gradient": GRADIENTS.values(),
        "dynamics": DYNAMICS.values(),
    }
    for group, kinds in choices.items():
        for kind in kinds:
            hints = get_type_hints(kind)
            columns |= {f"{group}.{field.name}": _hint_type(hints[field.name]) for field in fields(kind)}
    return _without_excluded(columns) | layout.HPARAMS


def _without_excluded(columns: Mapping[str, type[HParam]]) -> dict[str, type[HParam]]:
    return {name: kind for name, kind in columns.items() if name not in _EXCLUDED_COLUMNS}


def _hint_type(hint: Any) -> type[HParam]:
    """Return the type of a setting's column from the annotation of the setting; None in a union is ignored."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    if kinds[0] is bool:
        return bool
    if any(get_origin(kind) in (tuple, Literal) for kind in (hint, *kinds)):
        return str
    return float if kinds[0] in (int, float) else str


def _session_group(folder: Path) -> str:
    """Return a unique name for the run. TensorBoard treats sessions with equal names as repetitions of one run."""
    *_, parent, name = folder.resolve().parts
    return f"{name} in {parent}"


def _write_start(writer: SummaryWriter, group: str, settings: Mapping[str, Any], quantities: Sequence[str]) -> None:
    # TensorBoard reads these tags as regular expressions: val/mse would also match val/mse_per_feature.
    writer.add_custom_scalars(
        {section: {title: ["Multiline", [f"{tag}$" for tag in tags]] for title, tags in charts.items()}
         for section, charts in layout.chart_layout(quantities).items()}
    )  # fmt: skip
    values = hparams(settings)
    columns = {
        **hparam_columns(str(settings.get("task"))),
        **{name: _hparam_type(value) for name, value in values.items()},
    }
    experiment = api_pb2.Experiment(
        time_created_secs=time.time(),
        # TensorBoard sorts the columns by name, those with differs=True first, and shows the first few.
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=_TYPES[kind], differs=name in layout.FIRST_HPARAMS)
            for name, kind in columns.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(
                name=api_pb2.MetricName(tag=layout.dashboard_tag(tag)),
                display_name=tag,
                description=describe_tag(tag),
            )
            for tag in layout.summary_tags(str(settings.get("task")), _objective(settings))
        ],
    )
    _write_hparams(writer, metadata.EXPERIMENT_TAG, experiment=experiment)

    start = plugin_data_pb2.SessionStartInfo(group_name=group, start_time_secs=time.time())
    for name, value in values.items():
        field = {str: "string_value", float: "number_value", bool: "bool_value"}[type(value)]
        setattr(start.hparams[name], field, value)
    _write_hparams(writer, metadata.SESSION_START_INFO_TAG, session_start_info=start)


def _objective(settings: Mapping[str, Any]) -> str:
    return str(settings.get("trainer", {}).get("objective", ""))


def _quoted(word: str) -> str:
    """Quote a word for a shell, in double quotes if this is possible: "name=it's" is easier to read."""
    return shlex.quote(word) if shlex.quote(word) == word or set(word) & set('"$`\\!') else f'"{word}"'


def describe_tag(tag: str) -> str:
    """Return the meaning of a tag, with its unit."""
    unit, text = layout.TAGS[tag]
    return f"{text} ({unit})" if unit else text


def _write_hparams(writer: SummaryWriter, tag: str, **content: Any) -> None:
    data = plugin_data_pb2.HParamsPluginData(**content)
    value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
    _add(writer, value, 0)


def _add(writer: SummaryWriter, value: Summary.Value, step: int) -> None:
    file_writer: Any = writer.file_writer
    file_writer.add_summary(Summary(value=[value]), step)


def _remove_events(path: Path, tags: Collection[str]) -> None:
    """Remove events with these tags, and those of a run's end. TensorBoard would ignore the next such events."""
    kept, changed = io.BytesIO(), False
    records = RecordWriter(kept)
    for raw in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(raw)
        values = [value for value in event.summary.value if not (value.tag in tags or layout.is_end_tag(value.tag))]
        if len(values) == len(event.summary.value):
            records.write(raw)
            continue
        changed = True
        if values:
            del event.summary.value[:]
            event.summary.value.extend(values)
            records.write(event.SerializeToString())
    if changed:
        write_atomically(path, kept.getvalue())


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _hparam_type(value: Any) -> type[HParam]:
    if isinstance(value, bool):
        return bool
    return float if isinstance(value, int | float) else str


def _to_hparam(value: Any, kind: type[HParam]) -> HParam | None:
    """Convert `value` to the type `kind`; None if it is null or of another type."""
    if value is None:
        return None
    if kind is str:
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if kind is bool:
        # A word, such as solver.compile=solve, counts as true.
        return bool(value) if isinstance(value, bool | str) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
