"""What the panels of a figure are of: subjects, within which runs can be compared."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

from matplotlib.figure import Figure

from odebench.errors import UsageError
from odebench.plots.comparison import Panel, comparison
from odebench.reporting.lines import ALONG, Lacking, count, joined, split_into_lines
from odebench.reporting.runs import Evidence, Group, Run, differing
from odebench.reporting.table import shown_setting

MAX_PANELS = 24
# Settings of the data that leave what is tested as it is.
OF_TRAINING_DATA = {f"data.{name}" for name in ("train_limit", "validation", "augment", "samples", "fresh")}
Of = TypeVar("Of", bound=Hashable)  # a subject, which has panels of its own


class Subject(NamedTuple):
    """What results can be compared of: runs on the same data, judged by the same number. data: its name, with those of
    its settings that differ and make it other data; loss: which one, where the number is the loss."""

    data: str
    quantity: str
    loss: str


def subjects(evidence: Evidence) -> Callable[[Run], Subject]:
    """The subject of each run."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run in evidence.runs:
        by_name.setdefault(data_of(run), []).append(run.settings)
    telling = {
        name: [key for key in differing(settings) if key.startswith("data.") and key not in OF_TRAINING_DATA]
        for name, settings in by_name.items()
    }

    def subject(run: Run) -> Subject:
        words = [f"{key.removeprefix('data.')} {shown_setting(run.settings.get(key))}" for key in telling[data_of(run)]]
        loss = run.settings.get("loss.name") if run.objective == "loss" else ""
        return Subject(joined(data_of(run), *words), run.objective, str(loss))

    return subject


def draw_panels(panels: Sequence[Panel], least: int = 2, columns: int = 3) -> Figure:
    """The panels that have as many points, so many in a row; Lacking without any."""
    panels = [panel for panel in panels if points_of(panel) >= least]
    if not panels:
        raise Lacking
    return comparison(panels, columns)


def points_of(panel: Panel) -> int:
    """How many points of it can be drawn."""
    return sum(map(count, panel.lines))


def by_subject(
    evidence: Evidence,
    subject: Callable[[Run], Of],
    *,
    panels_each: int = 1,
    along: Sequence[str] = ALONG,
    first: str = "model.name",
) -> tuple[dict[Of, dict[str, list[Group]]], bool]:
    """Of each subject the groups by their lines, a line having one label in all; and whether these are lines.
    panels_each: of a subject; UsageError for more panels than a figure holds."""
    by_label, are_lines = split_into_lines(evidence, along, first, subject)
    found: dict[Of, dict[str, list[Group]]] = {subject(run): {} for run in evidence.runs if run.status == "done"}
    for label, groups in by_label.items():
        for group in groups:
            found[subject(group.runs[0])].setdefault(label, []).append(group)
    if panels_each * len(found) > MAX_PANELS:
        raise UsageError(
            f"it shows up to {MAX_PANELS // panels_each} data sets and objectives, not {len(found):,}; name fewer runs"
        )
    return found, are_lines


def data_of(run: Run) -> str:
    """The name of its data set, a subject for costs."""
    return str(run.settings.get("data.name"))
