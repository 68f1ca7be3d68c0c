"""Measure the memory, floating-point operations and time of a training step, and profile steps.

Memory is measured in a separate step that is not timed, because observing every operation makes a step several times
slower.
Only eager operations are measured, because compiled code hides its tensors.
"""

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from odebench.console import aligned

MIB = 2**20
NUM_OPERATIONS = 30  # rows of the table of a profile

log = logging.getLogger(__name__)


def measure_step(step: Callable[[], Any], device: torch.device | str) -> dict[str, float]:
    """Run `step` once and measure its memory and its floating-point operations.

    - memory/peak_mib: peak memory of the tensors that the step allocates: activations, gradients, solver states, and
      the batch if the step slices it. Tensors from before the step (parameters, optimiser state, data) are not counted:
      they are the same for every gradient mode. On the CPU, each tensor's storage is tracked from allocation to
      release, exact to the byte, but temporary memory inside kernels is not seen. On CUDA, the value is the allocator's
      peak minus the memory allocated before the step.
    - memory/saved_mib: peak memory that autograd holds for the backward pass, in storages allocated in the step. A
      storage saved twice counts once. For the continuous adjoint it is the graph of one evaluation. Tensors that a
      Function stores as attributes of ctx, without save_for_backward, are not counted.
    - flops/step: floating-point operations by PyTorch's formulas (FlopCounterMode). Matrix products, convolutions and
      attention are counted, with two operations per multiply-add; other operations are not.

    The step must begin with ``zero_grad()``. Otherwise its gradients are tensors from before the step.
    """
    device = torch.device(device)
    memory = _TensorMemoryTracker()
    saved = _SavedTensorTracker(memory)
    if is_cuda := device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before_bytes = torch.cuda.memory_allocated(device)
    with saved_tensors_hooks(saved.pack, saved.unpack), memory:
        step()
    peak_bytes = torch.cuda.max_memory_allocated(device) - before_bytes if is_cuda else memory.peak_bytes
    return {
        "memory/peak_mib": peak_bytes / MIB,
        "memory/saved_mib": saved.peak_bytes / MIB,
        "flops/step": memory.flops,
    }


class StepTimer:
    """Measures the mean time of the training steps between two rows of metrics. Time between steps is left out.

    Uses the host's clock: on CUDA the caller must synchronise before `stop`.
    """

    def __init__(self) -> None:
        """Start with zero steps."""
        self._seconds, self._steps, self._samples = 0.0, 0, 0
        self._started_s = 0.0

    def start(self) -> None:
        """Start the clock; call this at the start of a step."""
        self._started_s = time.perf_counter()

    def stop(self, num_samples: int) -> None:
        """Stop the clock; call this at the end of a step over `num_samples` samples."""
        self._seconds += time.perf_counter() - self._started_s
        self._steps += 1
        self._samples += num_samples

    def read(self) -> dict[str, float]:
        """Return time/step_ms and throughput/samples_per_s since the last call; empty if there were no steps."""
        seconds, steps, samples = self._seconds, self._steps, self._samples
        self._seconds, self._steps, self._samples = 0.0, 0, 0
        if not steps or seconds <= 0:
            return {}
        return {"time/step_ms": 1e3 * seconds / steps, "throughput/samples_per_s": samples / seconds}


@contextlib.contextmanager
def profiled_steps(num_steps: int | None, folder: Path, device: torch.device | str) -> Iterator[Callable[[], bool]]:
    """Profile the training steps after the first one, and write a trace and a table of operations to a folder.

    Yields a function to call after each step. It returns whether the profiler ran in that step, which is then slower.
    num_steps: how many steps to profile; None: none. The profiler changes no result.
    """
    if num_steps is None:
        yield lambda: False
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler prints lines of its own
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.device(device).type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(
        activities=activities,
        # The profiler runs in the first step too, without recording it: both have one-time costs.
        schedule=torch.profiler.schedule(wait=0, warmup=1, active=num_steps, repeat=1),
        on_trace_ready=lambda profiler: _write_profile(profiler, folder),
    )
    with profiler:

        def after_step() -> bool:
            was_active = profiler.step_num <= num_steps
            if was_active:
                profiler.step()
            return was_active

        yield after_step


def _write_profile(profiler: torch.profiler.profile, folder: Path) -> None:
    """Write the trace, and the table of the operations that take the most time. Logs where they are."""
    folder.mkdir(exist_ok=True)
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))
    table = operations_table(profiler)
    (folder / "operations.txt").write_text("\n".join([*table, ""]), encoding="utf-8")
    log.info("profile: open %s in https://ui.perfetto.dev\n%s", folder / "trace.json.gz", "\n".join(table[:11]))


def operations_table(profiler: torch.profiler.profile) -> list[str]:
    """Return a header and a row for each operation: its calls and its time without that of operations it calls."""
    averages = [one for one in profiler.key_averages() if not one.key.startswith("ProfilerStep")]
    place = "CPU"
    times_us = [(one.self_cpu_time_total, one) for one in averages]
    if any(one.self_device_time_total for one in averages):
        place = "GPU"
        # A label, such as that of the optimiser, spans operations that have rows of their own.
        times_us = [(one.self_device_time_total, one) for one in averages if not one.is_user_annotation]
    times_us.sort(key=lambda pair: pair[0], reverse=True)
    total_us = sum(time_us for time_us, _ in times_us) or 1
    rows = [("operation", "calls", f"{place} ms", "share")]
    for time_us, one in times_us[:NUM_OPERATIONS]:
        rows.append((one.key, f"{one.count}", f"{time_us / 1e3:.2f}", f"{time_us / total_us:.1%}"))
    return aligned(rows, numeric=(1, 2, 3))


class _TensorMemoryTracker(TorchDispatchMode):
    """Tracks each storage that an operation allocates, until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.flops = 0
        self._bytes: dict[int, int | None] = {}  # by storage; None: allocated before the measurement
        self._storage_refs: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.aten.lift_fresh.default:  # called by torch.tensor(...); its argument is a new tensor
            for tensor in _tensors((args, kwargs)):
                self._track(tensor, is_new=False)
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        for tensor in _tensors(out):
            self._track(tensor, is_new=True)
        return out

    def bytes_of(self, tensor: torch.Tensor) -> tuple[int, int]:
        """Return a key of the tensor's storage, and its size in bytes; 0 if it was allocated before the measurement."""
        key = tensor.untyped_storage()._cdata
        return key, self._bytes.get(key) or 0

    def _track(self, tensor: torch.Tensor, is_new: bool) -> None:
        """Count the tensor's storage if it is new or has been resized."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._bytes:
            self._bytes[key] = 0 if is_new else None
            self._storage_refs[key] = weakref.ref(storage, lambda _: self._on_freed(key))
        counted = self._bytes[key]
        if counted is not None and counted != storage.nbytes():
            self._bytes[key] = storage.nbytes()
            self.live_bytes += storage.nbytes() - counted
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _on_freed(self, key: int) -> None:
        self.live_bytes -= self._bytes.pop(key) or 0
        del self._storage_refs[key]


class _SavedTensorTracker:
    """Counts the memory that autograd holds for the backward pass. Its methods are the hooks for saved tensors."""

    def __init__(self, memory: _TensorMemoryTracker) -> None:
        self.held_bytes = 0
        self.peak_bytes = 0
        self._memory = memory
        self._save_counts: dict[int, int] = {}  # by storage

    def pack(self, tensor: torch.Tensor) -> "_SavedTensor":
        # Detach: a node that saves its own output would otherwise keep itself alive.
        saved = _SavedTensor(tensor.detach())
        key, num_bytes = self._memory.bytes_of(tensor)
        if num_bytes:
            if key not in self._save_counts:
                self.held_bytes += num_bytes
                self.peak_bytes = max(self.peak_bytes, self.held_bytes)
            self._save_counts[key] = self._save_counts.get(key, 0) + 1
            weakref.finalize(saved, self._release, key, num_bytes).atexit = False
        return saved

    def unpack(self, saved: "_SavedTensor") -> torch.Tensor:
        return saved.tensor

    def _release(self, key: int, num_bytes: int) -> None:
        self._save_counts[key] -= 1
        if not self._save_counts[key]:
            del self._save_counts[key]
            self.held_bytes -= num_bytes


class _SavedTensor:
    """A tensor saved in a graph; it is garbage collected when the graph releases it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))
