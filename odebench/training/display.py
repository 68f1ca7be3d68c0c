"""Show the progress of a training: a progress bar on a terminal, log lines elsewhere."""

import logging
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from odebench.config.schema.quantities import headlines, short_name
from odebench.console import flow
from odebench.training.distributed import is_rank_zero

log = logging.getLogger(__name__)

LOG_INTERVAL_S = 30.0
LINE_WIDTH = 80
_BAR = "{percentage:3.0f}%|{bar:10}| {desc}"
_BAR_WIDTH = len("100%|##########| ")


class ProgressDisplay(ExitStack):
    """Shows progress on stderr. Messages of the logger ``odebench`` also reach the log file."""

    def __init__(
        self, first_step: int, num_steps: int, steps_per_epoch: int, seconds_left: float, objective: str
    ) -> None:
        """Start the display.

        seconds_left: time until the time limit ends the training; infinite without a limit. objective: its tag.
        """
        super().__init__()
        self._num_steps, self._steps_per_epoch, self._seconds_left = num_steps, steps_per_epoch, seconds_left
        self._objective = objective.partition("/")[2]
        self._bar: Any = None
        self._first_step = first_step
        self._started = self._last_line = time.monotonic()
        self._step_ms = ""
        self._nfe: list[tuple[float, float]] = []  # forward and backward, of each step since the last validation
        if sys.stderr.isatty() and is_rank_zero():
            bar = tqdm(total=num_steps, initial=first_step, bar_format=_BAR, dynamic_ncols=True, leave=False)
            self._bar = self.enter_context(bar)
            self.enter_context(logging_redirect_tqdm([logging.getLogger("odebench")]))

    def show_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the progress after an optimiser step."""
        if "nfe/forward" in metrics:
            self._nfe.append((metrics["nfe/forward"], metrics["nfe/backward"]))
        if "time/step_ms" in metrics:
            self._step_ms = f"{_significant(metrics['time/step_ms'])} ms"
        if self._bar is not None:
            width = shutil.get_terminal_size().columns - _BAR_WIDTH - 1
            self._bar.set_description_str(flow(self._fields(step, metrics), width)[0], refresh=False)
            self._bar.update()
        elif time.monotonic() - self._last_line > LOG_INTERVAL_S:
            self._last_line = time.monotonic()
            log.info(flow([f"step {step}/{self._num_steps}", *self._fields(step, metrics)], LINE_WIDTH)[0])

    def _fields(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Return what a line about a step can show, the most important first."""
        # Keyed by magnitude: if loss and NLL are equal, the number is shown once.
        numbers = {abs(value): (tag, value) for tag, value in metrics.items() if tag.startswith("train/")}
        values = [f"{short_name(tag.removeprefix('train/'))} {_format(value)}" for tag, value in numbers.values()]
        start = [_format_nfe(self._nfe[-1:]), self._epoch(step), self._eta(step)]
        return [*start, *values[:1], self._step_ms, *values[1:]]

    def show_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print a line about the epoch, and log all metrics of its validation."""
        self._last_line = time.monotonic()
        values = {tag.removeprefix("val/"): value for tag, value in metrics.items()}
        names = headlines(self._objective, values)
        cost = [_format_nfe(self._nfe), self._step_ms, self._eta(step)]
        self._nfe.clear()

        def line(names: Iterable[str]) -> str:
            shown = ", ".join(f"{short_name(name)} {_format(values[name])}" for name in names)
            return "  ".join(filter(None, [self._epoch(step), f"val {shown}", *cost]))

        lines = [line(names[:2]), line(names[:1])]
        all_metrics = "  ".join(f"{tag} {value:.4g}" for tag, value in metrics.items())
        log.info(
            next((text for text in lines if len(text) <= LINE_WIDTH), lines[-1]),
            extra={"details": f"  [{all_metrics}]"},
        )

    def _epoch(self, step: int) -> str:
        return f"epoch {-(-step // self._steps_per_epoch)}/{-(-self._num_steps // self._steps_per_epoch)}"

    def _eta(self, step: int) -> str:
        taken, elapsed = max(step - self._first_step, 1), time.monotonic() - self._started
        seconds = elapsed / taken * (self._num_steps - step)
        return f"{tqdm.format_interval(max(min(seconds, self._seconds_left - elapsed), 0))} left"


def _format(value: float) -> str:
    """Format a number with four significant digits, zeros at its end included, so that successive lines align."""
    return f"{value:#.4g}".rstrip(".")


def _significant(value: float) -> str:
    """Format a number with three digits, or more if it is above 1000."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def _format_nfe(nfe: list[tuple[float, float]]) -> str:
    """Format the mean NFE of steps, forward and backward: ``NFE 13+25``; empty without an ODE."""
    if not nfe:
        return ""
    forward, backward = (sum(numbers) / len(nfe) for numbers in zip(*nfe, strict=True))
    return f"NFE {_significant(forward)}+{_significant(backward)}"
