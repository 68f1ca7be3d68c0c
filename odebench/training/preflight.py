"""Checks of a run before it starts. Imports no torch, so that the command line reports an error at once."""

from pathlib import Path

from odebench.config.settings import Settings
from odebench.errors import UsageError
from odebench.record.files import check_folder_can_be_made
from odebench.record.reader import RunRecord, is_run, read_run


def check_batch_size(batch_size: int, num_processes: int) -> None:
    """Raise UsageError if the processes that train a model together cannot share each batch equally."""
    if batch_size % num_processes:
        line = f"{num_processes} processes share it; make it a multiple of {num_processes}"
        raise UsageError(f"trainer.batch_size={batch_size}: {line}", "trainer.batch_size")


def check_folders(settings: Settings) -> None:
    """Raise UsageError if the folder of a new run cannot be made, or if init_from holds no run."""
    if settings.run_dir is not None and is_run(Path(settings.run_dir)):
        return  # it resumes, and no longer needs init_from
    check_folder_can_be_made(*requested_folder(settings))
    if settings.init_from is not None:
        read_init_run(settings.init_from)


def requested_folder(settings: Settings) -> tuple[Path, str]:
    """The requested folder, of the run or of its parents, and the setting that requests it."""
    chosen = settings.run_dir or settings.outputs
    return Path(chosen), f"{'outputs' if settings.run_dir is None else 'run_dir'}={chosen}"


def read_init_run(init_from: str) -> RunRecord:
    """The run whose weights a training starts from. Raises UsageError, which names the setting, if it is no run."""
    try:
        return read_run(init_from, metrics=False)
    except UsageError as error:
        raise UsageError(f"init_from={init_from}: {error}", "init_from") from None
