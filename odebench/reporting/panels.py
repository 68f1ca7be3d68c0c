"""Split runs into the panels of a figure; only runs in the same panel can be compared."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from matplotlib.figure import Figure

from odebench.errors import UsageError
from odebench.plots.comparison import Panel, comparison_figure, num_points
from odebench.reporting.lines import RESOLUTION_KEYS, MissingDataError, join_nonempty, split_into_lines
from odebench.reporting.runs import Run, RunCollection, RunGroup, differing_columns
from odebench.reporting.table import display_unit, format_setting

MAX_PANELS = 24
# Settings of the data that do not change the test data.
TRAINING_DATA_KEYS = {f"data.{name}" for name in ("train_limit", "validation", "augment", "samples", "fresh")}
# Losses that are evaluated in nats; flow matching is evaluated by its negative log-likelihood.
LOSSES_IN_NATS = ("cross_entropy", "maximum_likelihood", "density_matching", "flow_matching", "autoregressive", "elbo")
Key = TypeVar("Key", bound=Hashable)  # identifies a panel
LinesByLabel = Mapping[str, Sequence[RunGroup]]


class PanelKey(NamedTuple):
    """Identifies runs whose results can be compared: the same data and the same quantity.

    data: name of the data set, with the settings that change it. loss: name of the loss, if the quantity is the loss.
    """

    data: str
    quantity: str
    loss: str

    def axis_label(self, split: str) -> str:
        """Of the quantity, such as ``validation accuracy (%)`` or ``test loss (maximum likelihood, nats)``."""
        unit = display_unit(f"best/{self.quantity}")
        name = self.quantity.removesuffix(f"_{unit}").replace("_", " ")
        detail = join_nonempty(self.loss.replace("_", " "), "nats" if self.loss in LOSSES_IN_NATS else unit)
        return f"{split} {name} ({detail})" if detail else f"{split} {name}"


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


def panel_by_data(
    collection: RunCollection, make_panel: Callable[[str, LinesByLabel], Panel], min_points: int, **how: Any
) -> Figure:
    """Draw one panel per data set.

    make_panel: makes it from the name of the data set and its lines (label -> groups). how: see `lines_by_panel`.
    """
    found, are_lines = lines_by_panel(collection, data_name, **how)
    panels = [make_panel(*item)._replace(connect_points=are_lines, x_log=False, y_log=False) for item in found.items()]
    return draw_panels(panels, min_points)


def data_name(run: Run) -> str:
    """The name of a run's data set: the panel key for costs."""
    return str(run.settings.get("data.name"))
