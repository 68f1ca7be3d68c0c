"""What a run that failed is told of: one line with the way out."""

import errno
import os
import resource
import shlex
import sys
from pathlib import Path

import torch

from odebench.config.settings import Settings
from odebench.record.meters import MIB

_FULL = (errno.ENOSPC, errno.EDQUOT)


def reason(error: Exception, settings: Settings, folder: Path) -> str:
    """Why the run in a folder failed, in one line."""
    if is_out_of_memory(error):
        return _out_of_memory(settings)
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        way_out = (
            f"; make room, then go on with: odebench resume {shlex.quote(str(folder))}" if error.errno in _FULL else ""
        )
        return f"{os.strerror(error.errno)}{where}{way_out}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was no memory left, on the CPU or on a GPU."""
    # The CPU's allocator raises a bare RuntimeError; nothing but its text tells.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _out_of_memory(settings: Settings) -> str:
    trainer = settings.trainer
    ways_out = [f"lower trainer.batch_size={trainer.batch_size}"]
    if settings.has_ode and settings.gradient.name == "backprop":
        ways_out.append("choose gradient=checkpoint or gradient=adjoint")
    ways_out.append(f"lower trainer.eval_batch_size={trainer.eval_batch_size} where an evaluation failed")
    return f"out of memory after a peak of {_peak_mib():,.0f} MiB; {', or '.join(ways_out)}"


def _peak_mib() -> float:
    """The most that this process has held: of the GPU's memory, else of the machine's."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / MIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
