"""The training loop of every task."""

import logging
import math
import time
from typing import Any

import torch

from odebench import ode
from odebench.config.schema.quantities import higher_is_better
from odebench.config.settings import Settings
from odebench.errors import Diverged
from odebench.record import layout
from odebench.record.profiling import StepTimer, measure_step, profiled_steps
from odebench.record.writer import NullRunWriter, RunWriter
from odebench.tasks import Loss, Task
from odebench.tasks.task import read_numbers
from odebench.training import distributed
from odebench.training.checkpoint import TrainingState
from odebench.training.display import ProgressDisplay
from odebench.training.optim import lr_factor
from odebench.training.restored_state import restored_state
from odebench.training.signals import StopRequest

log = logging.getLogger(__name__)

# The task's figures are drawn this many times, evenly spaced, as long as this takes less than a share of the time.
NUM_DRAWINGS, MAX_DRAWING_SHARE = 8, 0.05
FIRST_DRAWING_S = 0.5  # what the first drawing is assumed to take


def fit(training: TrainingState, settings: Settings, writer: RunWriter | NullRunWriter, stop: StopRequest) -> bool:
    """Train to the end. Returns False if a signal stopped the training before. In both cases ``last.pt`` is up to date.

    Several processes take every decision together. Raises Diverged if the training cannot go on.
    """
    trainer, task, progress = settings.trainer, training.task, training.progress
    num_steps = trainer.num_steps(task.steps_per_epoch)
    last_checkpoint = writer.path / layout.LAST_CHECKPOINT
    last_saved, timer = time.monotonic(), StepTimer()
    max_seconds = math.inf if trainer.max_minutes is None else 60 * trainer.max_minutes
    writer.write_status("running", step=progress.step, steps=num_steps)

    figures = TrainingFigures()
    num_profiled = trainer.profile if distributed.is_rank_zero() else None
    device = next(task.model.parameters()).device
    with (
        ProgressDisplay(
            progress.step, num_steps, task.steps_per_epoch, max_seconds - writer.elapsed_s, trainer.objective
        ) as display,
        profiled_steps(num_profiled, writer.path / layout.PROFILE, device) as after_step,
    ):
        while progress.step < num_steps and not progress.finished:
            timer.start()
            metrics = train_step(training, settings, num_steps)
            if not after_step():
                timer.stop(task.batch_size)
            progress.step += 1
            step = progress.step

            minutes_up = writer.elapsed_s > max_seconds
            save_due = time.monotonic() - last_saved > 60 * trainer.checkpoint_minutes
            # All processes must agree: a signal to one of them stops all.
            stopping, minutes_up, save_due = distributed.reduce_max(stop.signal_number, minutes_up, save_due)
            last_step = step == num_steps or minutes_up
            if step % trainer.log_every == 0 or last_step:
                metrics |= timer.read()
                writer.log(step, metrics)
            display.show_step(step, metrics)

            epoch, rest = divmod(step, task.steps_per_epoch)
            validation_due = (rest == 0 and epoch % trainer.validate_every == 0) or last_step
            if validation_due:
                display.show_validation(step, validate(training, settings, writer))
                too_stale = trainer.patience is not None and progress.stale_epochs >= trainer.patience
                progress.finished = last_step or too_stale
            if progress.finished or (rest == 0 and epoch % trainer.measure_every == 0):
                measure_training_step(training, writer)
            if trainer.figures and not progress.finished:
                figures.draw_if_due(training, writer, num_steps)
            # Save after all logging of this step, because a run that is killed later resumes with the next step.
            keep_due = trainer.keep_every is not None and rest == 0 and epoch % trainer.keep_every == 0
            if validation_due or stopping or save_due or keep_due:
                writer.flush()
                progress.elapsed_s = writer.elapsed_s
                training.save(last_checkpoint, writer.path / layout.KEPT_CHECKPOINT.format(epoch) if keep_due else None)
                # After the checkpoint, which holds the same weights if the process is killed in between.
                if validation_due and progress.best_step == step:
                    training.save_best_weights(writer.path / layout.BEST_CHECKPOINT)
                last_saved = time.monotonic()
            if stopping and not progress.finished:
                stop.signal_number = stopping
                return False
    return True


def train_step(training: TrainingState, settings: Settings, num_steps: int) -> dict[str, float]:
    """Take one optimiser step and return its metrics by tag. If it diverges, raises Diverged and keeps the weights."""
    trainer, task, optimizer = settings.trainer, training.task, training.optimizer
    step = training.progress.step
    lr = optimizer.defaults["lr"] * lr_factor(settings.schedule, step, task.steps_per_epoch, num_steps)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    distributed.seed_step(settings.seed, step)
    loss = backpropagate(task, distributed.shard_batch(task.batch(step), task.batch_size), trainer.max_nfe)
    distributed.average_gradients(task.model)
    norm = torch.nn.utils.get_total_norm([p.grad for p in task.model.parameters() if p.grad is not None])
    if trainer.clip_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(task.model.parameters(), trainer.clip_grad_norm, norm)
    # The loop waits for the device only here: it must not change the weights if loss or gradient is not finite.
    value, grad_norm, *numbers = read_numbers([loss.value, norm, *loss.metrics.values()])
    _check_loss(value)
    if not math.isfinite(grad_norm):
        raise Diverged(f"the gradient's norm is {grad_norm}, at a loss of {value:.4g}")
    optimizer.step()
    if training.average is not None:
        training.average.update_parameters(task.model)
    metrics = dict(zip(loss.metrics, numbers, strict=True))
    metrics = distributed.reduce_mean(metrics | solver_metrics(loss.solves))
    return metrics | {"optim/lr": lr, "optim/grad_norm": grad_norm}


def backpropagate(task: Task, batch: Any, max_nfe: int | None = None) -> Loss:
    """Compute the loss of this process's shard of a batch, and its gradients.

    Raises Diverged in all processes if one of them diverges. A single process on an accelerator does not check that the
    loss is finite, because reading it would wait for the device: the caller must check.
    """
    with distributed.synchronised_divergence():
        loss = task.loss(batch)
        # Backward solves may synchronise their steps (solver.sync_steps), so no process may start one if another
        # diverged.
        if distributed.world_size() > 1 or loss.value.device.type == "cpu":
            _check_loss(loss.value.item())
    with distributed.synchronised_divergence():
        try:
            loss.value.backward()
        except (ode.SolveError, ValueError) as error:
            # If the loss is not finite, this is the cause: the solve fails, or SciPy's methods reject the gradient.
            _check_loss(loss.value.item())
            if isinstance(error, ValueError):
                raise
            raise Diverged(str(error)) from error
        nfe = sum(stats.nfe for stats in loss.solves)
        if max_nfe is not None and nfe > max_nfe:
            _check_loss(loss.value.item())
            raise Diverged(f"{nfe} forward evaluations, more than trainer.max_nfe={max_nfe}")
    return loss


def _check_loss(value: float) -> None:
    """Raise Diverged unless the loss is finite."""
    if not math.isfinite(value):
        raise Diverged(f"the loss is {value}; a smaller optim.lr may help")


def solver_metrics(solves: tuple[ode.Stats, ...]) -> dict[str, float]:
    """Return the cost of a training step's solves, after its backward pass, by tag; empty without an ODE."""
    if not solves:
        return {}
    backward = [stats.backward for stats in solves if stats.backward is not None]
    return {
        "nfe/forward": sum(stats.nfe for stats in solves),
        "nfe/backward": sum(stats.nfe for stats in backward),
        "steps/accepted": sum(stats.accepted for stats in solves),
        "steps/rejected": sum(stats.rejected for stats in solves),
        "steps/backward_accepted": sum(stats.accepted for stats in backward),
        "steps/backward_rejected": sum(stats.rejected for stats in backward),
    }


def validate(training: TrainingState, settings: Settings, writer: RunWriter | NullRunWriter) -> dict[str, float]:
    """Evaluate the validation split, log the metrics, and note whether they are the best so far."""
    progress = training.progress
    metrics = distributed.broadcast_result(lambda: training.task.evaluate("validation", training.evaluated_model))
    tagged = {f"val/{name}": value for name, value in metrics.items() if layout.is_tag(f"val/{name}")}
    writer.log(progress.step, tagged)
    value, best_before = tagged[settings.trainer.objective], progress.best
    if is_better(settings.trainer.objective, value, best_before):
        progress.best, progress.best_step = value, progress.step
    # The weights will be saved, but trainer.patience sees no improvement, if the value equals the best one or is NaN.
    has_improved = progress.best != best_before and math.isfinite(value)
    progress.stale_epochs = 0 if has_improved else progress.stale_epochs + settings.trainer.validate_every
    return tagged


def is_better(objective: str, value: float, best: float | None) -> bool:
    """Whether a value of the objective, such as ``val/accuracy``, replaces the best value so far."""
    if best is None or not math.isfinite(best):
        return True
    # Accuracies of few images are often equal: then the weights that were trained longer are preferred.
    return value >= best if higher_is_better(objective.partition("/")[2]) else value < best


def measure_training_step(training: TrainingState, writer: RunWriter | NullRunWriter) -> None:
    """Run an extra training step, log its memory, FLOPs and step sizes, and restore all state.

    If the step diverges, logs a warning and nothing else.
    """
    task, progress = training.task, training.progress
    batch = distributed.shard_batch(task.batch(progress.step), task.batch_size)
    solves: list[ode.Stats] = []

    def step() -> None:
        loss = backpropagate(task, batch)
        _check_loss(loss.value.item())
        solves.extend(loss.solves)

    try:
        # measure_step cannot see compiled operations.
        with restored_state(task), torch.compiler.set_stance("force_eager"):
            device = next(task.model.parameters()).device
            metrics = measure_step(step, device)
    except Diverged as error:
        log.warning("memory, FLOPs and step sizes were not measured after step %d: %s", progress.step, error)
        return
    writer.log(progress.step, metrics)
    writer.write_step_sizes(solves, progress.step)


class TrainingFigures:
    """The task's figures in TensorBoard, as often as the constants above allow."""

    def __init__(self) -> None:
        self._seconds = FIRST_DRAWING_S

    def draw_if_due(self, training: TrainingState, writer: RunWriter | NullRunWriter, num_steps: int) -> None:
        """Draw after the steps that are due, and restore all state. If a solve fails, log a warning instead."""
        task, step, started = training.task, training.progress.step, time.monotonic()
        is_due = step * NUM_DRAWINGS // num_steps > (step - 1) * NUM_DRAWINGS // num_steps
        if not is_due or self._seconds > MAX_DRAWING_SHARE * writer.elapsed_s:
            return
        try:
            with restored_state(task), torch.compiler.set_stance("force_eager"):
                task.model, trained = training.evaluated_model, task.model
                try:
                    figures = task.figures("validation", animate=False)
                finally:
                    task.model = trained
            for name, figure in figures.items():
                writer.write_figure(name, figure, step, to_folder=False)
        except Diverged as error:
            log.warning("figures were not drawn after step %d: %s", step, error)
        self._seconds += time.monotonic() - started
