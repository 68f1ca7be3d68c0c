"""Change the settings of a run that resumes: how long it trains, and what has no effect on its numbers."""

import logging
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from odebench.config.read import read_settings
from odebench.config.saved import LENGTH_KEYS, check_resumable, read_saved
from odebench.config.schema.training import CosineSettings, OneCycleSettings, TrainerSettings
from odebench.config.settings import Settings
from odebench.errors import UsageError
from odebench.record import layout
from odebench.record.reader import RunRecord
from odebench.training.checkpoint import Progress, TrainingState
from odebench.training.optim import lr_factor

log = logging.getLogger(__name__)


def apply_changes(saved: DictConfig, overrides: Sequence[str], run: RunRecord) -> tuple[Settings, bool]:
    """Change the saved settings of a run in place, and parse them.

    Returns them, and whether they change the length of the training. Raises UsageError if a setting cannot change.
    """
    changes = check_resumable(overrides, saved.get("config_dir"), run.path)
    if not changes:
        return read_saved(saved, run.path / layout.SETTINGS), False
    for key, value in changes.items():
        OmegaConf.update(saved, key, value)
    settings = read_settings(saved)
    if "trainer.epochs" in changes and settings.trainer.iterations is not None:
        line = f"has no effect: trainer.iterations={settings.trainer.iterations} is set; change that"
        raise UsageError(f"trainer.epochs={settings.trainer.epochs}: {line}", "trainer.epochs")
    return settings, not changes.keys().isdisjoint(LENGTH_KEYS)


def check_new_length(trainer: TrainerSettings, progress: Progress, steps_per_epoch: int) -> None:
    """Raise UsageError if a training with a new length would end at once."""
    if trainer.num_steps(steps_per_epoch) <= progress.step:
        if trainer.iterations is not None:
            line = f"trainer.iterations={trainer.iterations}: {progress.step} steps are done; give more"
            raise UsageError(line, "trainer.iterations")
        line = f"trainer.epochs={trainer.epochs}: {progress.step / steps_per_epoch:.4g} epochs are done; give more"
        raise UsageError(line, "trainer.epochs")
    if trainer.max_minutes is not None and progress.elapsed_s >= 60 * trainer.max_minutes:
        spent = f"{progress.elapsed_s / 60:.3g} minutes are spent"
        line = f"trainer.max_minutes={trainer.max_minutes:g}: {spent}; give more, or trainer.max_minutes=null"
        raise UsageError(line, "trainer.max_minutes")
    if trainer.patience is not None and progress.stale_epochs >= trainer.patience:
        stale = f"no better result for {progress.stale_epochs} epochs"
        line = f"trainer.patience={trainer.patience}: {stale}; give more, or trainer.patience=null"
        raise UsageError(line, "trainer.patience")


def log_new_schedule(before: DictConfig, settings: Settings, training: TrainingState) -> None:
    """Log what the schedule of the learning rate does if the training now has another number of steps.

    before: the settings from before the change.
    """
    steps_per_epoch, step = training.task.steps_per_epoch, training.progress.step
    epochs, iterations = (OmegaConf.select(before, f"trainer.{key}") for key in ("epochs", "iterations"))
    old_steps, new_steps = iterations or epochs * steps_per_epoch, settings.trainer.num_steps(steps_per_epoch)
    if old_steps == new_steps:
        return
    lr, schedule = training.optimizer.defaults["lr"], settings.schedule
    last = lr * lr_factor(schedule, max(step - 1, 0), steps_per_epoch, old_steps)
    following = lr * lr_factor(schedule, step, steps_per_epoch, new_steps)
    how = "goes on, as it does not depend on the length"
    if isinstance(schedule, OneCycleSettings | CosineSettings):
        how = f"is now spread over {new_steps / steps_per_epoch:.4g} epochs, as in a run of this length"
    log.info("schedule=%s %s; learning rate %.3g at step %d, then %.3g", schedule.name, how, last, step, following)
