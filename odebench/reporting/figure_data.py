"""The numbers behind a figure: as rows of a CSV file, and with an SVG for the script of the HTML page."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from odebench.plots.comparison import Comparison, Line, Panel, series_id
from odebench.reporting.drawn_figures import DrawnFigure

POINTS_PER_INCH = 72  # the unit of coordinates in SVG
MAX_POINTS = 200  # of a curve that can be hovered over


def numbers(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """The numbers of a figure: a row for each point, then those of the lines for reference."""
    rows: list[dict[str, Any]] = []
    for panel in panels:
        names = {"panel": panel.title, "x_name": panel.x, "y_name": panel.y}
        for line in map(Line.finite, panel.lines):
            for i, (x, y) in enumerate(zip(line.x.tolist(), line.y.tolist(), strict=True)):
                row = names | {"series": line.label, "x": x, "y": y}
                row["y_std"] = None if line.y_error is None else float(line.y_error[i])
                row["x_end"] = None if line.ends is None else float(line.ends[i])
                row["point"] = line.point_labels[i] if line.point_labels else None
                rows.append(row | {"run": line.runs[i if len(line.runs) > 1 else 0] if line.runs else None})
        for one in panel.reference_lines:
            points = zip(one.x, one.y, strict=True) if one.level is None else [(None, one.level)]
            rows += [dict.fromkeys(rows[0]) | names | {"series": one.label, "x": x, "y": y} for x, y in points]
    return rows


class InlineFigure(NamedTuple):
    """The SVG of a figure, and the series that it shows."""

    svg: str
    series: list[dict[str, Any]]


def inline_figure(name: str, figure: Figure, shown: Comparison | DrawnFigure, rows: Mapping[str, int]) -> InlineFigure:
    """Make a figure for the page. rows: folder of a run -> the number of its row in the page's tables."""
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    series = []
    is_heat_map = isinstance(shown, DrawnFigure) and shown.is_heat_map
    for number, panel in enumerate(shown.panels if is_heat_map or isinstance(shown, Comparison) else ()):
        axes, index = figure.axes[number], 0
        for row, line in enumerate(panel.lines):
            if not len(line.finite().x):
                continue
            at = _cells(line, row) if is_heat_map else _points(line.finite())
            made = _series(line.finite(), axes.transData.transform(at), figure, rows)
            if is_heat_map:  # how far from its centre a cell ends
                ends = axes.transData.transform([(0, 0), (0.5, 0.5)])
                made["reach"] = np.ptp(ends, axis=0).max() * POINTS_PER_INCH / figure.dpi
            series.append({"id": series_id(number, index), "xLabel": panel.x, "yLabel": panel.y} | made)
            index += 1
    return InlineFigure(_as_html(file.getvalue()), series)


def _points(line: Line) -> np.ndarray:
    """Where the points of a line are drawn, in the coordinates of the data [N, 2]; the middles of intervals."""
    return np.stack([line.x if line.ends is None else (line.x + line.ends) / 2, line.y], axis=1)


def _cells(line: Line, row: int) -> np.ndarray:
    """Where the known cells of a row of a heat map are drawn: column and row [N, 2]."""
    columns = np.flatnonzero(np.isfinite(line.y))
    return np.stack([columns, np.full(len(columns), row)], axis=1)


def _series(line: Line, at: np.ndarray, figure: Figure, rows: Mapping[str, int]) -> dict[str, Any]:
    """The points of a line: numbers, positions in the SVG, and rows, one for each point or one for all.

    at: the positions of the points on the canvas [N, 2].
    """
    chosen = np.unique(np.linspace(0, len(line.x) - 1, MAX_POINTS).astype(int)) if len(line.runs) == 1 else slice(None)
    scale = POINTS_PER_INCH / figure.dpi
    error = {} if line.y_error is None else {"yError": _rounded(line.y_error[chosen], 3)}
    return error | {
        "label": line.label,
        "rows": [rows[run] for run in line.runs if run in rows],
        "x": _rounded(line.x[chosen], 6),
        "y": _rounded(line.y[chosen], 6),
        "px": [round(px * scale, 1) for px in at[chosen, 0].tolist()],
        "py": [round((figure.bbox.height - py) * scale, 1) for py in at[chosen, 1].tolist()],
    }


def _rounded(values: np.ndarray, digits: int) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values.tolist()]


def _as_html(svg: str) -> str:
    """The SVG as part of an HTML page: without header, metadata and ids that several figures share."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| version="[^"]*"', "", svg)
    svg = re.sub(r' id="(series-\d+-\d+)(-\w+)?"', r' class="series" data-series="\1"', svg)
    return re.sub(r' id="[\w.]+_\d+"', "", svg)
