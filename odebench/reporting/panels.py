"""Split runs into the panels of a figure; only runs in the same panel can be compared."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

from matplotlib.figure import Figure

from odebench.errors import UsageError
from odebench.plots.comparison import Panel, comparison_figure, num_points
from odebench.reporting.lines import RESOLUTION_KEYS, MissingDataError, join_nonempty, split_into_lines
from odebench.reporting.runs import Run, RunCollection, RunGroup, differing_columns
from odebench.reporting.table import format_setting

MAX_PANELS = 24
# Settings of the data that do not change the test data.
TRAINING_DATA_KEYS = {f"data.{name}" for name in ("train_limit", "validation", "augment", "samples", "fresh")}
Key = TypeVar("Key", bound=Hashable)  # identifies a panel


class PanelKey(NamedTuple):
    """Identifies runs whose results can be compared: the same data and the same quantity. data: name of the data set,
    with the settings that change it; loss: name of the loss, if the quantity is the loss."""

    data: str
    quantity: str
    loss: str


def panel_key_function(collection: RunCollection) -> Callable[[Run], PanelKey]:
    """A function from a run to its panel key."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run in collection.runs:
        by_name.setdefault(data_name(run), []).append(run.settings)
    differing_keys = {
        name: [key for key in differing_columns(settings) if key.startswith("data.") and key not in TRAINING_DATA_KEYS]
        for name, settings in by_name.items()
    }

    def panel_key(run: Run) -> PanelKey:
        words = [
            f"{key.removeprefix('data.')} {format_setting(run.settings.get(key))}"
            for key in differing_keys[data_name(run)]
        ]
        loss = run.settings.get("loss.name") if run.objective == "loss" else ""
        return PanelKey(join_nonempty(data_name(run), *words), run.objective, str(loss))

    return panel_key


def draw_panels(panels: Sequence[Panel], min_points: int = 2, columns: int = 3) -> Figure:
    """Draw the panels that have enough points; MissingDataError if there are none."""
    panels = [panel for panel in panels if num_points(panel.lines) >= min_points]
    if not panels:
        raise MissingDataError
    return comparison_figure(panels, columns)


def lines_by_panel(
    collection: RunCollection,
    panel_key: Callable[[Run], Key],
    *,
    panels_per_key: int = 1,
    along: Sequence[str] = RESOLUTION_KEYS,
    first: str = "model.name",
) -> tuple[dict[Key, dict[str, list[RunGroup]]], bool]:
    """Panel key -> label -> groups of a line, and whether these are lines; a line has the same label in all panels.
    panels_per_key: number of panels for each key; UsageError if the figure would have too many."""
    by_label, are_lines = split_into_lines(collection, along, first, panel_key)
    found: dict[Key, dict[str, list[RunGroup]]] = {
        panel_key(run): {} for run in collection.runs if run.status == "done"
    }
    for label, groups in by_label.items():
        for group in groups:
            found[panel_key(group.runs[0])].setdefault(label, []).append(group)
    if panels_per_key * len(found) > MAX_PANELS:
        raise UsageError(
            f"it shows up to {MAX_PANELS // panels_per_key} data sets and objectives, got {len(found):,}; "
            "name fewer runs"
        )
    return found, are_lines


def data_name(run: Run) -> str:
    """The name of a run's data set: the panel key for costs."""
    return str(run.settings.get("data.name"))
