"""The steps of a solve, read from a run's steps.json."""

import json
from pathlib import Path
from typing import NamedTuple

from odebench.errors import UsageError
from odebench.record import layout
from odebench.record.files import read_if_exists


class SolveSteps(NamedTuple):
    """The steps of one solve in a training step.

    start: where the first step starts; None in records of older versions. sizes: [accepted], signed. rejected: start
    and signed size of each rejected step. place: which solve of the training step it is, "" if there is only one.
    """

    start: float | None
    sizes: list[float]
    rejected: list[tuple[float, float]]
    place: str


def read_longest_solve(folder: Path) -> SolveSteps | None:
    """Read the solve with the most accepted steps of a run; None if there is none.

    A training step may solve several ODEs, such as those of an encoder and a decoder. Raises UsageError if the file is
    damaged.
    """
    path = folder / layout.STEP_SIZES
    if (text := read_if_exists(path)) is None:
        return None
    try:
        content = json.loads(text)
        solves = [[float(size) for size in sizes] for sizes in content["solves"]]
        starts = [*content.get("starts", ()), *[None] * len(solves)]
        rejected = [[(float(t), float(h)) for t, h in steps] for steps in content.get("rejected", [[]] * len(solves))]
        number = max(range(len(solves)), key=lambda one: len(solves[one]), default=0)
        if not solves or not solves[number]:
            return None
        place = f"solve {number + 1} of {len(solves)}" if len(solves) > 1 else ""
        start = None if starts[number] is None else float(starts[number])
        return SolveSteps(start, solves[number], rejected[number], place)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"{path} is damaged") from None
