"""Compute the results of a finished training for summary.json, and format them as a table for the terminal."""

import math
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from odebench.config.choices import options_of
from odebench.config.schema.solver import NO_SOLVER
from odebench.config.settings import Settings
from odebench.console import aligned, fitted
from odebench.record import layout

# Logged tag -> tag in the summary, whose value is the last one, the mean over the last epoch, or for rates the harmonic
# mean over the last epoch. Metrics that depend on the task (train/..., val/...) become final/train_... and
# final/val_....
LAST_VALUES = {
    "memory/peak_mib": "final/peak_mib",
    "memory/saved_mib": "final/saved_mib",
    "flops/step": "final/flops",
}
EPOCH_MEANS = {
    "nfe/forward": "final/nfe_forward",
    "nfe/backward": "final/nfe_backward",
    "time/step_ms": "final/step_ms",
}
EPOCH_RATES = {"throughput/samples_per_s": "final/samples_per_s"}


def summary_metrics(rows: Sequence[Mapping[str, Any]], best_step: int, steps_per_epoch: int) -> dict[str, float]:
    """Compute the ``best/...`` and ``final/...`` metrics from the logged rows."""
    metrics: dict[str, float] = {"best/step": best_step, "best/epoch": best_step / steps_per_epoch}
    last_step = max(row["step"] for row in rows)
    for row in rows:
        for tag, value in row.items():
            if summary_tag := LAST_VALUES.get(tag) or (
                tag.startswith(("train/", "val/")) and f"final/{tag.replace('/', '_')}"
            ):
                metrics[summary_tag] = value
            if tag.startswith("val/") and row["step"] == best_step:
                metrics[f"best/{tag.removeprefix('val/')}"] = value
    covered = _rows_of_last_epoch(rows, last_step - steps_per_epoch)
    for tag, summary_tag in (EPOCH_MEANS | EPOCH_RATES).items():
        if weighted := [(weight, row[tag]) for weight, row in covered if tag in row]:
            weights, values = zip(*weighted, strict=True)
            mean = statistics.harmonic_mean if tag in EPOCH_RATES else statistics.fmean
            metrics[summary_tag] = mean(values, weights)
    return metrics


def _rows_of_last_epoch(rows: Sequence[Mapping[str, Any]], first_step: int) -> list[tuple[int, Mapping[str, Any]]]:
    """Return (number, row) for each row with steps after `first_step`: the number of such steps that the row covers."""
    step_rows = [row for row in rows if not row.keys().isdisjoint(EPOCH_MEANS | EPOCH_RATES)]
    before = [0, *(row["step"] for row in step_rows)]
    covered = [(row["step"] - max(start, first_step), row) for start, row in zip(before, step_rows, strict=False)]
    return [(steps, row) for steps, row in covered if steps > 0]


def describe_settings(settings: Settings) -> str:
    """Describe model, solver, tolerance and gradient mode in a few words."""
    solver = settings.solver
    if solver.name == NO_SOLVER:
        return settings.model.name
    if settings.cell_solver:
        step = f"steps of {options_of(settings.model)['encoder_step']:g} of the span"
        return f"{settings.model.name}, {settings.cell_solver}, {step}, backprop"
    return f"{settings.model.name}, {solver.name}, {solver.step_control}, {settings.gradient.name}"


def result_rows(
    test: Sequence[tuple[str, str]], validation: Sequence[tuple[str, str]], best_epoch: float
) -> dict[str, str]:
    """Return rows of the final table, name -> text. test, validation: (name, text) of the test and best validation."""
    (name, headline), *more = test
    return {
        f"test {name}": headline,
        "validation": f"{validation[0][1]}  (best, epoch {best_epoch:.3g})",
        **{f"test {name}": text for name, text in more},
    }


def training_table(summary: Mapping[str, Any], folder: Path, width: int | None = None) -> str:
    """Format the table that ``odebench train`` prints at its end.

    summary: the content of summary.json. width: of the terminal, None if there is none. A command that is too long for
    the table stands alone on the last line.
    """
    rows, command = [*_training_rows(summary, folder)], f"odebench tensorboard {shlex.quote(str(folder))}"
    whole = aligned([*rows, ("dashboard", command)])
    return "\n".join(whole if width is None or len(whole[-1]) <= width else [*fitted(rows, width), command])


def _training_rows(summary: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    yield "run", f"{summary['run']}, {summary['parameters']:,} parameters"
    for key in layout.LABELS:
        if value := summary.get(key):
            yield key, " ".join(value.split()) if isinstance(value, str) else ", ".join(value)
    yield from summary["results"].items()
    if "final/nfe_forward" in summary:
        yield (
            "NFE per step",
            f"{summary['final/nfe_forward']:.1f} forward, {summary['final/nfe_backward']:.1f} backward  "
            f"(test: {summary['final/test_nfe']:.1f})",
        )
    if "final/peak_mib" in summary:
        peak, saved = summary["final/peak_mib"], summary["final/saved_mib"]
        yield "memory per step", f"{peak:.1f} MiB peak, {saved:.1f} MiB saved for backward"
        yield "FLOPs per step", _with_si_prefix(summary["final/flops"])
    if math.isfinite(summary.get("final/step_ms", math.nan)):
        yield (
            "time",
            f"{60 * summary['final/minutes']:.0f} s  ({summary['final/step_ms']:.0f} ms per step, "
            f"{summary['final/samples_per_s']:.0f} samples/s)",
        )
    yield "record", str(folder)


def _with_si_prefix(number: float) -> str:
    """Format a number with one decimal place and an SI prefix: ``33.1 G``."""
    for factor, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= factor:
            return f"{number / factor:.1f}{prefix}"
    return f"{number:.0f}"
