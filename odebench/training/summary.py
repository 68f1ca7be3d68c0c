"""What a finished training comes to: the numbers of summary.json and the table on the screen."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from odebench.settings import NO_SOLVER, Settings

# Which logged tag becomes which closing tag: the last value, or the mean over the last epoch.
LAST = {
    "train/loss": "final/train_loss",
    "train/accuracy": "final/train_accuracy",
    "val/loss": "final/val_loss",
    "val/accuracy": "final/val_accuracy",
    "memory/peak_mib": "final/peak_mib",
    "memory/saved_mib": "final/saved_mib",
    "flops/step": "final/flops",
}
MEAN = {
    "nfe/forward": "final/nfe_forward",
    "nfe/backward": "final/nfe_backward",
    "time/step_ms": "final/step_ms",
    "throughput/samples_per_s": "final/samples_per_s",
}


def closing_numbers(rows: Sequence[Mapping[str, Any]], best_step: int, steps_per_epoch: int) -> dict[str, float]:
    """The ``best/...`` and ``final/...`` numbers that follow from the rows logged."""
    numbers: dict[str, float] = {"best/step": best_step, "best/epoch": best_step / steps_per_epoch}
    last_step = max(row["step"] for row in rows)
    for tag, closing in LAST.items():
        values = [row[tag] for row in rows if tag in row]
        if values:
            numbers[closing] = values[-1]
    for tag, closing in MEAN.items():
        values = [row[tag] for row in rows if tag in row and row["step"] > last_step - steps_per_epoch]
        if values:
            numbers[closing] = sum(values) / len(values)
    for row in rows:
        if row["step"] == best_step and "val/loss" in row:
            numbers |= {"best/loss": row["val/loss"], "best/accuracy": row["val/accuracy"]}
    return numbers


def describe(settings: Settings) -> str:
    """Model, solver, tolerance and gradient mode in a few words."""
    solver = settings.solver
    if solver.name == NO_SOLVER:
        return settings.model.name
    if solver.steps is not None:
        how = f"{solver.steps} steps"
    elif solver.step_size is not None:
        how = f"step size {solver.step_size:g}"
    elif solver.rtol == solver.atol:
        how = f"tol {solver.rtol:g}"
    else:
        how = f"rtol {solver.rtol or 0:g} atol {solver.atol or 0:g}"
    return f"{settings.model.name}, {solver.name}, {how}, {settings.gradient.name}"


def accuracy_line(numbers: Mapping[str, float]) -> str:
    """An accuracy with its interval: ``97.30 %  (95 % interval 96.10 to 98.13, 1,000 images)``."""
    percent = {name: f"{100 * numbers[name]:.2f}" for name in ("accuracy", "low", "high")}
    return (
        f"{percent['accuracy']} %  (95 % interval {percent['low']} to {percent['high']}, {numbers['images']:,} images)"
    )


def training_table(summary: Mapping[str, Any], folder: Path) -> str:
    """The lines that ``odebench train`` ends with, from its summary."""
    return aligned(_training_rows(summary, folder))


def _training_rows(summary: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    yield "run", f"{summary['run']}, {summary['parameters']:,} parameters"
    yield "test accuracy", accuracy_line(summary["test"])
    yield "validation", f"{100 * summary['best/accuracy']:.2f} %  (best, epoch {summary['best/epoch']:.3g})"
    if "final/nfe_forward" in summary:
        yield (
            "NFE a step",
            f"{summary['final/nfe_forward']:.1f} forward, {summary['final/nfe_backward']:.1f} backward  "
            f"(test: {summary['final/test_nfe']:.1f})",
        )
    if "final/peak_mib" in summary:
        peak, saved = summary["final/peak_mib"], summary["final/saved_mib"]
        yield "memory a step", f"{peak:.1f} MiB peak, {saved:.1f} MiB saved for backward"
        yield "FLOPs a step", f"{summary['final/flops'] / 1e9:.1f} G"
    if math.isfinite(summary.get("final/step_ms", math.nan)):
        yield (
            "time",
            f"{60 * summary['final/minutes']:.0f} s  ({summary['final/step_ms']:.0f} ms a step, "
            f"{summary['final/samples_per_s']:.0f} samples/s)",
        )
    yield "record", str(folder)
    yield "dashboard", f"odebench tensorboard {folder}"


def aligned(rows: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> str:
    """Two columns, the first as wide as its widest entry."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)
