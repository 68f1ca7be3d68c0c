"""What one training step costs: memory, floating-point operations, time.

Memory is measured in a step of its own, which is never timed: watching every operation makes it several times
slower. All numbers are of eager work; compiled code hides its tensors, so measure the eager model and say so.
"""

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

MIB = 2**20


def measure_step(step: Callable[[], Any], device: torch.device | str) -> dict[str, float]:
    """Run `step` once, watched, and return its memory and its operations.

    - memory/peak_mib: the most bytes of tensors alive at one moment that the step made itself: activations,
      gradients, solver states, the batch where the step slices it. What lived before the step (parameters,
      optimiser state, data) does not count: it is the same for every gradient mode. On the CPU each tensor's
      storage is followed from birth to death, exact to the byte, a kernel's inner workspace left out; on CUDA
      it is the allocator's peak less what was allocated before.
    - memory/saved_mib: the most bytes that autograd held for the backward pass at one moment, of storages
      made in the step, one saved twice counted once. For the continuous adjoint that is the graph of one
      evaluation. What a Function keeps as an attribute of its ctx, not saved by name, is not seen.
    - flops/step: by PyTorch's own formulas (those of FlopCounterMode): matrix products, convolutions and
      attention, two operations a multiply-add; all else counts nothing.

    The step must drop its gradients first (``zero_grad()``): those of the step before would count as old.
    """
    device = torch.device(device)
    memory = _TensorMemoryTracker()
    saved = _SavedTensorTracker(memory)
    with _cuda_peak(device) as cuda_peak_bytes, saved_tensors_hooks(saved.pack, saved.unpack), memory:
        step()
    peak_bytes = memory.peak_bytes if cuda_peak_bytes is None else cuda_peak_bytes()
    return {
        "memory/peak_mib": peak_bytes / MIB,
        "memory/saved_mib": saved.peak_bytes / MIB,
        "flops/step": memory.flops,
    }


class StepTimer:
    """Mean time of the training steps between two rows of metrics, without what lies between them.

    It reads the host's clock: on CUDA the caller synchronises before `stop`, or times many steps together.
    """

    def __init__(self) -> None:
        """Start with no step taken."""
        self._seconds, self._steps, self._samples = 0.0, 0, 0
        self._started_s = 0.0

    def start(self) -> None:
        """A step begins."""
        self._started_s = time.perf_counter()

    def stop(self, num_samples: int, num_steps: int = 1) -> None:
        """A step over `num_samples` ends (or `num_steps` of them)."""
        self._seconds += time.perf_counter() - self._started_s
        self._steps += num_steps
        self._samples += num_samples

    def read(self) -> dict[str, float]:
        """time/step_ms and throughput/samples_per_s since the last reading; empty where no step was taken."""
        seconds, steps, samples = self._seconds, self._steps, self._samples
        self._seconds, self._steps, self._samples = 0.0, 0, 0
        if not steps or seconds <= 0:
            return {}
        return {"time/step_ms": 1e3 * seconds / steps, "throughput/samples_per_s": samples / seconds}


class _TensorMemoryTracker(TorchDispatchMode):
    """Follows the storages that operations make, from their first output to their death."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.flops = 0
        self._bytes: dict[int, int | None] = {}  # by storage; None: lived before
        self._storage_refs: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.aten.lift_fresh.default:  # torch.tensor(...): its argument is new
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
        """Key of the tensor's storage and the bytes it counts; 0 where it lived before."""
        key = tensor.untyped_storage()._cdata
        return key, self._bytes.get(key) or 0

    def _track(self, tensor: torch.Tensor, is_new: bool) -> None:
        """Count the tensor's storage where it is new, or has been resized since it was."""
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
    """Counts what autograd holds for backward, by the two hooks it calls when it saves and unpacks."""

    def __init__(self, memory: _TensorMemoryTracker) -> None:
        self.held_bytes = 0
        self.peak_bytes = 0
        self._memory = memory
        self._save_counts: dict[int, int] = {}  # by storage

    def pack(self, tensor: torch.Tensor) -> "_SavedTensor":
        # detached: a node that keeps its own output would else keep itself alive, and the count with it
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
    """One tensor in a graph; its death tells that the graph let go of it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))


@contextmanager
def _cuda_peak(device: torch.device) -> Iterator[Callable[[], int] | None]:
    """On CUDA, a function that tells the peak of the bytes allocated since; elsewhere None."""
    if device.type != "cuda":
        yield None
        return
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before_bytes = torch.cuda.memory_allocated(device)
    yield lambda: torch.cuda.max_memory_allocated(device) - before_bytes
