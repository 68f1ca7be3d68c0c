"""The HTML page of a report: a table for each task, published values, figures, and a panel for each run."""

import dataclasses
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from odebench.record import layout
from odebench.record.files import read_if_exists
from odebench.reporting import notes, table
from odebench.reporting.formatting import (
    DESCRIPTIONS,
    EMPTY,
    better_of,
    describe_tag,
    display_scale,
    format_setting,
    heading,
    name_and_unit,
    setting_headings,
)
from odebench.reporting.lines import group_label, panel_key_function
from odebench.reporting.runs import Run, RunCollection, RunGroup
from odebench.reporting.table import TableCell

# Columns that a table shows at first; the settings that vary take at most half of them.
MAX_SHOWN = 10

Json = dict[str, Any]


def page_data(collection: RunCollection, folder: Path) -> tuple[list[Json], Json]:
    """Return the tables of the page, and all data for its script: the tables, and the runs of each row by number.

    folder: where the page will be.
    """
    numbers = row_numbers(collection)
    tasks = dict.fromkeys(str(run.settings.get("task")) for run in collection.runs)
    tables = []
    for task in tasks:
        runs = [run for run in collection.runs if str(run.settings.get("task")) == task]
        part = dataclasses.replace(collection, runs=runs) if len(tasks) > 1 else collection
        ids = [numbers[str(group.runs[0].path)] for group in part.groups]
        tables.append(_task_table(part, task) | {"ids": ids})
    if published := notes.published_table(collection):
        columns = [
            _column(column.title, column.title, cells, column.is_numeric, shown=True)
            for column, cells in zip(published.columns, zip(*published.rows, strict=True), strict=True)
        ]
        tables.append({"title": "published", "heading": "Published values", "columns": columns, "sort": None})
    runs_of_rows = [[_run(run, folder) for run in group.runs] for group in collection.groups]
    return tables, {"tables": tables, "runs": runs_of_rows}


def row_numbers(collection: RunCollection) -> dict[str, int]:
    """Folder of a run -> the number of its group, which identifies its row on the page."""
    return {str(run.path): number for number, group in enumerate(collection.groups) for run in group.runs}


def _task_table(collection: RunCollection, task: str) -> Json:
    """The table of a task's groups, sorted by the objective, the best first."""
    groups, objective = collection.groups, collection.objectives[0]
    headline = table.headline_tags(collection)
    settings, results = _setting_columns(collection), _result_columns(collection, headline)
    first = [column for column in results if column["key"] in headline]
    varied = [column for column in settings if column["key"] in collection.varying_keys][: MAX_SHOWN // 2]
    varied += [column for column in settings if column["key"] == "name"]
    for column in [*varied, *first][:MAX_SHOWN]:
        is_result = column["key"] == collection.result_tag(objective)
        column["shown"] = is_result or len(groups) == 1 or len(set(column["texts"])) > 1
    columns = [*settings, *results, _runs_column(groups)]
    sort = next((i for i, column in enumerate(columns) if column["key"] == collection.result_tag(objective)), None)
    return {
        "title": task,
        "heading": f"{task.replace('_', ' ').capitalize()}: {notes.plural(len(groups), 'setting')}",
        "best": _best_lines(collection, results, [column["key"] for column in varied]),
        "columns": columns,
        "sort": sort,
        "down": sort is not None and bool(columns[sort].get("down")),
    }


def _setting_columns(collection: RunCollection) -> list[Json]:
    """Names, tags and notes of the runs, then the settings that differ."""
    labels = table.used_labels(collection)
    keys = [*collection.varying_keys, *collection.other_differing_keys]
    titles = setting_headings([*labels, *keys])
    columns = []
    for key in labels:
        texts = [group.label(key) or EMPTY for group in collection.groups]
        columns.append(_column(key, key, [TableCell(text, text) for text in texts], isSetting=True))
    for key in keys:
        values = [group.settings.get(key) for group in collection.groups]
        is_numeric = all(value is None or isinstance(value, float) for value in values)
        cells = [TableCell(format_setting(value), math.nan if value is None else value) for value in values]
        columns.append(_column(key, titles[key], cells, is_numeric, help=key, isSetting=True))
    return columns


def _result_columns(collection: RunCollection, headline: Sequence[str]) -> list[Json]:
    """Every tag with its mean and standard deviation, the headline tags first."""
    comparable = panel_key_function(collection)
    classes = [comparable(group.runs[0]) for group in collection.groups]
    columns = []
    for tag in dict.fromkeys([*headline, *table.all_tags(collection)]):
        numbers, scale = table.displayed_numbers(tag, collection.groups), display_scale(tag)
        cells = table.mark_best(tag, table.value_cells(tag, numbers), classes)
        stds = [_number(std) for _, std in numbers]
        more: Json = {"stds": stds} if any(stds) else {}
        more |= {"help": f"{tag}: {describe_tag(tag)}", "scale": scale, "down": better_of(tag) is max}
        columns.append(_column(tag, heading(tag), cells, True, **more))
    return columns


def _runs_column(groups: Sequence[RunGroup]) -> Json:
    cells = [
        TableCell(str(done) if done == len(group.runs) else f"{done} of {len(group.runs)}", done)
        for group in groups
        for done in [len(group.done_runs)]
    ]
    return _column("done", "runs", cells, True, help=DESCRIPTIONS["runs"])


def _column(key: str, title: str, cells: Sequence[TableCell], is_numeric: bool = False, **more: Any) -> Json:
    values = {"values": [_number(cell.value) for cell in cells]} if is_numeric else {}
    return {
        "key": key,
        "title": title,
        "isNumeric": is_numeric,
        "shown": False,
        "texts": [cell.text for cell in cells],
        "best": [i for i, cell in enumerate(cells) if cell.is_best],
        **values,
        **more,
    }


def _number(value: Any) -> float | str | None:
    """A value for JSON, with ten digits; None if it is not finite."""
    if not isinstance(value, float | int):
        return str(value)
    return float(f"{value:.10g}") if math.isfinite(value) else None


def _best_lines(collection: RunCollection, results: Sequence[Json], keys: Sequence[str]) -> list[Json]:
    """For each combination of data and objective with several settings: the best one, its results and its costs.

    keys: of the settings that name it.
    """
    comparable = panel_key_function(collection)
    keys = [key for key in keys if key not in ("data.name", "name")]
    found: dict[Any, list[int]] = {}
    for number, group in enumerate(collection.groups):
        if math.isfinite(group.mean(collection.result_tag(group.runs[0].objective))):
            found.setdefault(comparable(group.runs[0]), []).append(number)
    columns = {column["key"]: column for column in results}
    lines = []
    for key, numbers in found.items():
        tag = collection.result_tag(key.quantity)
        better = better_of(tag)
        if better is None or len(numbers) < 2:
            continue
        best = better(numbers, key=columns[tag]["values"].__getitem__)
        shown = [f"best/{key.quantity}", f"final/test_{key.quantity}", *table.COSTS[:4]]
        texts = {tag: columns[tag]["texts"][best] for tag in shown if tag in columns}
        words = []
        for tag, text in texts.items():
            name, unit = name_and_unit(tag)
            words += [f"{name} {text} {unit}".strip()] if text != EMPTY else []
        lines.append(
            {"data": key.data, "label": group_label(collection.groups[best], keys), "results": ", ".join(words)}
        )
    return lines


def _run(run: Run, folder: Path) -> Json:
    """Return the content of the panel of a run; paths are relative to the page's folder."""
    lines = (read_if_exists(run.path / layout.OVERRIDES) or b"").decode(errors="replace").splitlines()
    words = [line for line in lines if not line.startswith("run_dir=")]
    figures = run.path / layout.FIGURES
    return {
        "path": str(run.path),
        "folder": quote(os.path.relpath(run.path, folder)) + "/",
        "status": run.status,
        "message": run.overview.message,
        "command": shlex.join(["odebench", "train", *words]),
        "figures": sorted(os.listdir(figures)) if figures.is_dir() else [],
    }
