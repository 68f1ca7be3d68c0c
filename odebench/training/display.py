"""Show the progress of a training: a progress bar on a terminal, log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from odebench.training.distributed import is_rank_zero

log = logging.getLogger(__name__)

LOG_INTERVAL_S = 30.0


class ProgressDisplay(ExitStack):
    """Shows progress on stderr. Messages of the logger ``odebench`` also reach the log file."""

    def __init__(self, first_step: int, num_steps: int, steps_per_epoch: int, seconds_left: float) -> None:
        """Start the display. seconds_left: time until the time limit ends the training; infinite without a limit."""
        super().__init__()
        self._num_steps, self._steps_per_epoch, self._seconds_left = num_steps, steps_per_epoch, seconds_left
        self._bar: Any = None
        self._first_step = first_step
        self._started = self._last_line = time.monotonic()
        if sys.stderr.isatty() and is_rank_zero():
            bar = tqdm(total=num_steps, initial=first_step, unit="step", dynamic_ncols=True, leave=False)
            self._bar = self.enter_context(bar)
            self.enter_context(logging_redirect_tqdm([logging.getLogger("odebench")]))

    def show_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the progress after an optimiser step."""
        if self._bar is not None:
            self._bar.set_description(f"epoch {self._epoch(step)}", refresh=False)
            self._bar.set_postfix_str(_format_metrics(metrics), refresh=False)
            self._bar.update()
        elif time.monotonic() - self._last_line > LOG_INTERVAL_S:
            self._last_line = time.monotonic()
            log.info("step %d/%d  %s  %s to go", step, self._num_steps, _format_metrics(metrics), self._eta(step))

    def show_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a validation."""
        self._last_line = time.monotonic()
        shown = "  ".join(f"{tag} {value:.4g}" for tag, value in metrics.items())
        log.info("epoch %s  %s  %s to go", self._epoch(step), shown, self._eta(step))

    def _epoch(self, step: int) -> str:
        return f"{-(-step // self._steps_per_epoch)}/{-(-self._num_steps // self._steps_per_epoch)}"

    def _eta(self, step: int) -> str:
        taken, elapsed = max(step - self._first_step, 1), time.monotonic() - self._started
        seconds = elapsed / taken * (self._num_steps - step)
        return tqdm.format_interval(max(min(seconds, self._seconds_left - elapsed), 0))


def _format_metrics(metrics: Mapping[str, float]) -> str:
    """Format the training metrics and the NFE on one line."""
    names = {tag: tag.partition("/")[2].replace("_", " ") for tag in metrics if tag.startswith("train/")}
    names |= {"nfe/forward": "NFE", "nfe/backward": "backward NFE"}
    return "  ".join(f"{name} {metrics[tag]:.4g}" for tag, name in names.items() if tag in metrics)
