"""Prepare the process for training: device, threads, random states, determinism."""

import contextlib
import ctypes
import logging
import os
import platform
import random

import numpy as np
import torch

from odebench.config.settings import Settings
from odebench.errors import Diverged, UsageError
from odebench.ode import SolveError
from odebench.tasks import Task
from odebench.training import distributed
from odebench.training.restored_state import restored_state

log = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """Return the device for a setting: auto, cpu, cuda or cuda:N. Raises UsageError if there is no such device.

    With "cuda", each of several processes on a machine gets a different GPU.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if available else "cpu"
    device = torch.device(name)
    if device == torch.device("cuda") and distributed.world_size() > 1:
        device = torch.device("cuda", distributed.local_rank())
    if device.type == "cuda" and (device.index or 0) >= available:
        found = f"{available} CUDA device(s) here" if available else "no CUDA device here, or a torch without CUDA"
        raise UsageError(f"device={name}: {found}; use device=cpu or device=auto (odebench doctor shows the devices)")
    return device


def prepare_processor(settings: Settings, device: torch.device) -> None:
    """Set the number of threads, and what makes computations on a CPU faster."""
    if settings.trainer.threads is not None:
        torch.set_num_threads(settings.trainer.threads)
    if device.type == "cpu":
        keep_freed_memory()
        # Gradients in long recurrent networks decay below 1e-38 (denormals), where CPUs are many times slower.
        torch.set_flush_denormal(True)


def prepare_environment(settings: Settings) -> torch.device:
    """Set threads, determinism and random states, and return the device."""
    device = choose_device(settings.device)
    deterministic = settings.trainer.deterministic
    # cuBLAS reads this when it starts. Without it, its matrix products are not reproducible.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # Deterministic mode would also fill every new tensor with NaN: a debugging aid that costs a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    random.seed(settings.seed)
    np.random.seed(settings.seed)  # noqa: NPY002 (the global state that third-party code draws from)
    torch.manual_seed(settings.seed)
    prepare_processor(settings, device)
    return device


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step, instead of returning them to the system.

    Each step allocates and frees the same large tensors. By default glibc maps new memory for each of them, and the
    kernel fills it with zeros, which can take as long as the arithmetic.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)


def compile_model(task: Task) -> None:
    """Compile the vector field, or the whole network if there is no ODE. Logs a warning if this fails.

    Runs one training step to find out whether compilation works, then restores all state. If the solve fails in this
    step, the error is ignored here: the training will report it. A UsageError of the step is raised.
    """
    part = getattr(task.model, "field", task.model)
    part.compile(dynamic=False)
    try:
        with restored_state(task), contextlib.suppress(Diverged, SolveError):
            # The shapes must be those of this process's shards: for others, the training would compile again.
            task.loss(distributed.shard_batch(task.batch(0), task.batch_size)).value.backward()
    except UsageError:
        raise
    except Exception as error:  # the compiler raises errors of many types, for example if there is no C++ compiler
        part._compiled_call_impl = None
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log.warning("trainer.compile: not compiled, continuing in eager mode (%s)", reason[0])
