"""Show the state of runs and the progress of a sweep: a table that is redrawn on a terminal, lines elsewhere."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from odebench.console import progress_text
from odebench.record import layout
from odebench.record.reader import RunOverview
from odebench.sweep.validate import Job, job_labels

log = logging.getLogger(__name__)

PLAIN_INTERVAL_S = 30.0
_MAX_ROWS = 20
STATE_COLUMNS = ("STATUS", "STEP", "ETA", "BEST", "TEST", "NFE", "MEMORY", "MINUTES")
# Those that a narrow terminal leaves out, the first one first.
LESS_IMPORTANT = ("DISK", "ETA", "STEP", "MINUTES")


def state_columns(run: RunOverview) -> tuple[str, ...]:
    """Return the STATE_COLUMNS of a run.

    BEST, TEST: the objective's best value in the validations, and that of the test. NFE: of a training step, forward
    and backward, mean over the last epoch. MEMORY: peak of a training step.
    """
    objective, best = str(run.setting("trainer.objective") or "objective"), run.summary.get("objective")
    nfe = [_number(run.summary.get(f"final/nfe_{way}"), ".1f") for way in ("forward", "backward")]
    peak = _number(run.summary.get("final/peak_mib"), ".1f")
    return (
        run.status,
        str(run.step),
        eta(run.eta_s),
        "-" if best is None else f"{objective} {_number(best, '.4f')}",
        _number(run.summary.get(f"final/test_{objective.partition('/')[2]}"), ".4f"),
        "-" if "-" in nfe else "+".join(nfe),
        "-" if peak == "-" else f"{peak} MiB",
        _number(run.summary.get("final/minutes"), ".1f"),
    )


def eta(seconds: float | None) -> str:
    """Format a remaining time as ``H:MM:SS``, or as ``M:SS`` below an hour; ``-`` if it is unknown."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-"


def format_counts(counts: Mapping[str, int]) -> str:
    """Format the number of jobs by status, such as ``3 queued, 2 running``."""
    return ", ".join(f"{counts[status]} {status}" for status in layout.STATUSES if counts.get(status))


class SweepDisplay:
    """Shows progress on stderr: the number of jobs by status, and a line for each running job."""

    def __init__(self, jobs: Sequence[Job], overviews: Sequence[RunOverview], num_rows: int) -> None:
        """Show `jobs`. overviews: their current states. num_rows: how many jobs can run at a time."""
        self._overviews = {job.number: overview for job, overview in zip(jobs, overviews, strict=True)}
        self._labels = {job.number: label for job, label in zip(jobs, job_labels(jobs), strict=True)}
        self._num_rows = min(num_rows, _MAX_ROWS)
        self._rows: list[Any] = []
        self._stack = ExitStack()
        self._started = self._last_line = time.monotonic()
        self._ended_before = self._count_ended()

    def __enter__(self) -> "SweepDisplay":
        if sys.stderr.isatty():
            for position in range(1 + self._num_rows):
                bar = tqdm(total=0, position=position, bar_format="{desc}", dynamic_ncols=True, leave=False)
                self._rows.append(self._stack.enter_context(bar))
            self._stack.enter_context(logging_redirect_tqdm([logging.getLogger("odebench")]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def update(self, job: Job, overview: RunOverview) -> None:
        """Update the state of a job. If its status changes, print a line."""
        before = self._overviews[job.number].status
        self._overviews[job.number] = overview
        if overview.status not in (before, "queued"):
            level = logging.INFO if overview.status in ("running", "done") else logging.WARNING
            log.log(level, self._job_line(job.number))

    def status(self, job: Job) -> str:
        """Return the last known status of a job."""
        return self._overviews[job.number].status

    def warn(self, text: str) -> None:
        """Print a warning above the table."""
        log.warning(text)

    def refresh(self) -> None:
        """Redraw the table. Without a terminal, print it every PLAIN_INTERVAL_S seconds."""
        running = [number for number, overview in self._overviews.items() if overview.status == "running"]
        if self._rows:
            shown = running[: self._num_rows]
            lines = [self._counts_line(), *(self._job_line(number) for number in shown)]
            for position, bar in enumerate(self._rows):
                bar.set_description_str(lines[position] if position < len(lines) else "", refresh=True)
        elif time.monotonic() - self._last_line > PLAIN_INTERVAL_S:
            self._last_line = time.monotonic()
            log.info(self._counts_line())
            for number in running[: self._num_rows]:
                log.info(self._job_line(number))

    def _counts_line(self) -> str:
        ended, elapsed_s = self._count_ended(), time.monotonic() - self._started
        progress = progress_text(ended, len(self._overviews), elapsed_s, self._ended_before)
        return f"{progress}: {format_counts(Counter(overview.status for overview in self._overviews.values()))}"

    def _count_ended(self) -> int:
        return sum(overview.status in ("done", "diverged", "failed") for overview in self._overviews.values())

    def _job_line(self, number: int) -> str:
        return job_line(number, self._overviews[number], self._labels[number])


def job_line(number: int, overview: RunOverview, label: str) -> str:
    """Format the state of a job, such as ``job 3: done, step 20, val/accuracy 0.9712  seed=3``."""
    best = overview.summary.get("objective")
    parts = [overview.status]
    if overview.step:
        parts.append(f"step {overview.step}")
    if overview.eta_s is not None:
        parts.append(f"{eta(overview.eta_s)} to go")
    if overview.status == "done" and best is not None:
        parts.append(f"{overview.setting('trainer.objective')} {_number(best, '.4f')}")
    if overview.message:
        parts.append(overview.message)
    return f"job {number}: {', '.join(parts)}  {label}".rstrip()
