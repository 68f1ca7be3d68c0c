"""The step sizes of solves: each step is an interval over t at the height of its size."""

from collections.abc import Mapping, Sequence

import numpy as np

from odebench.plots.comparison import Line, Panel

REJECTED = "rejected steps"
# A run's label -> start (None: unknown), signed sizes, and start and signed size of each rejected step of its solve.
Steps = Mapping[str, tuple[float | None, Sequence[float], Sequence[tuple[float, float]]]]


def step_size_panel(model: str, place: str, steps: Steps) -> Panel:
    """A panel with a line for each solve, and one for the rejected steps of all; sizes are absolute values.

    place: which solve of a training step it is, "" if there is only one. The starts are known for all solves or none.
    """
    lines = []
    for label, (start, sizes, _) in steps.items():
        ends = np.cumsum([start or 0.0, *sizes])
        lines.append(Line(label, ends[:-1], np.abs(sizes), ends=ends[1:]))
    rejected = np.array([step for _, _, some in steps.values() for step in some], dtype=float).reshape(-1, 2)
    if len(rejected):
        t, h = rejected.T
        lines.append(Line(REJECTED, t, np.abs(h), ends=t + h, marker="x"))
    x = "t" if all(start is not None for start, _, _ in steps.values()) else "t since the start of the solve"
    unit = "(time of the ODE)"
    title = f"{model}: step sizes of {place or 'the solve'} of a training batch"
    return Panel(title, f"{x} {unit}", f"step size {unit}", lines, x_log=False)
