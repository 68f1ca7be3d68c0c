"""Check a run before it starts. Imports no torch, so that the command line reports errors at once."""

from pathlib import Path

from odebench.config.settings import Settings
from odebench.errors import UsageError
from odebench.record.files import check_folder_can_be_made
from odebench.record.reader import RunRecord, is_run, read_run


def check_batch_size(batch_size: int, num_processes: int) -> None:
    """Raise UsageError if a batch cannot be split equally among the processes that train the model."""
    if batch_size % num_processes:
        line = f"{num_processes} processes share it; make it a multiple of {num_processes}"
        raise UsageError(f"trainer.batch_size={batch_size}: {line}", "trainer.batch_size")


def check_folders(settings: Settings) -> None:
    """Raise UsageError if the folder of a new run cannot be made, or if init_from holds no run."""
    if settings.run_dir is not None and is_run(Path(settings.run_dir)):
        return  # the run will resume from its own checkpoint, without init_from
    check_folder_can_be_made(*requested_folder(settings))
    if settings.init_from is not None:
        read_init_run(settings.init_from)


def requested_folder(settings: Settings) -> tuple[Path, str]:
    """Return the folder that ``run_dir`` sets, else ``outputs`` in which the run gets a folder, and this setting."""
    chosen = settings.run_dir or settings.outputs
    return Path(chosen), f"{'outputs' if settings.run_dir is None else 'run_dir'}={chosen}"


def read_init_run(init_from: str) -> RunRecord:
    """Read the run whose weights a training starts from. If the folder is not a run's, the error names init_from."""
    try:
        return read_run(init_from, metrics=False)
    except UsageError as error:
        raise UsageError(f"init_from={init_from}: {error}", "init_from") from None
