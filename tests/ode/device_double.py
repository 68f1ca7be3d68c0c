"""A test double of an accelerator: a device that exists in this process only.

Its tensors hold CPU tensors but report the device "testdevice". Operations compute on the CPU; one that mixes devices
raises, as on a GPU. ``Accelerator`` counts what would wait for a GPU. It shows nothing about speed and rounding there.
"""

import sys
from collections import Counter

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip(f"torch {torch.__version__} has no devices in Python", allow_module_level=True)

NAME = "testdevice"


class _BackendModule(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


# Once in a process: torch has no way to take it back.
backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_BackendModule())
DEVICE = torch.device(NAME, 0)

# The host waits for the device to know the shape of the result, or whether the operation failed.
WAITING = {
    "_linalg_check_errors",
    "equal",
    "is_nonzero",
    "linalg_cholesky",
    "linalg_inv",
    "linalg_lu_factor",
    "linalg_solve",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_dim",
    "_unique2",
}
# May take tensors of several devices: copies, and indices, which are copied to the device.
MIXING = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}


class DeviceTensor(torch.Tensor):
    """A tensor on the double; ``values_on_cpu`` is the CPU tensor that it holds."""

    @staticmethod
    def __new__(cls, values):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        tensor.values_on_cpu = values
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self):
        """One copy to the host."""
        return self.detach().cpu().tolist()


class Accelerator(TorchDispatchMode):
    """While entered, tensors can be made on ``DEVICE``; counts what makes the host wait, and copies to the device.

    reads, copies, queued: for the function of odebench that caused it, how often the host read values or shapes, copied
        values to the device and waited for it, and copied values with ``non_blocking=True``, which does not wait.
    """

    def __init__(self):
        super().__init__()
        self.reads, self.copies, self.queued = Counter(), Counter(), Counter()

    def __enter__(self):
        # torch.tensor(..., device=DEVICE) then makes a CPU tensor and copies it, which is seen here. That holds in this
        # thread only, so backward passes run in it, too.
        self._before = torch._C._only_lift_cpu_tensors(), torch.autograd.is_multithreading_enabled()
        torch._C._set_only_lift_cpu_tensors(True)
        torch._C._set_multithreading_enabled(False)
        return super().__enter__()

    def __exit__(self, *exception):
        torch._C._set_only_lift_cpu_tensors(self._before[0])
        torch._C._set_multithreading_enabled(self._before[1])
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        self._count(func, args, kwargs, tensors)
        return _run(func, args, kwargs)

    def _count(self, func, args, kwargs, tensors):
        name = func.overloadpacket.__name__
        on_device = [isinstance(x, DeviceTensor) for x in tensors]
        if name == "_to_copy":
            target = kwargs.get("device") or tensors[0].device
            source_there, target_there = on_device[0], target.type == NAME
            queued = kwargs.get("non_blocking", False)
        elif name == "copy_":
            target_there, source_there = on_device
            queued = (*args, *kwargs.values())[2:] == (True,)
        elif name in MIXING:
            masks = [x for x in args[1] if x is not None and x.dtype == torch.bool]
            if on_device[0] and masks:  # the host needs to know how many elements a mask selects
                self.reads[_place()] += 1
            source_there, target_there, queued = all(on_device), on_device[0], False
        else:
            if any(on_device) and (name in WAITING or name == "_local_scalar_dense"):
                self.reads[_place()] += 1
            return
        if source_there and not target_there:
            self.reads[_place()] += 1
        elif target_there and not source_there and all(x.numel() for x in tensors):
            (self.queued if queued else self.copies)[_place()] += 1


def _place():
    """FILE FUNCTION of odebench's innermost call that is no helper of transfers; or FILE:LINE of the test's."""
    frame = sys._getframe(2)
    first = frame
    while frame is not None:
        path = frame.f_code.co_filename
        is_helper = path.endswith("ode/transfer.py") or frame.f_code.co_name == "to_list"
        if "/odebench/" in path and "/tests/" not in path and not is_helper:
            return f"{path.rpartition('/odebench/')[2]} {frame.f_code.co_qualname.replace('.<locals>', '')}"
        frame = frame.f_back
    while first is not None and ("/torch/" in first.f_code.co_filename or "device_double" in first.f_code.co_filename):
        first = first.f_back
    return "autograd" if first is None else f"{first.f_code.co_filename.rpartition('/')[2]}:{first.f_lineno}"


def _run(func, args, kwargs):
    """Compute an operation on the CPU; its results are on the device if its arguments are, or if it names it."""
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, DeviceTensor)]
    result_there = len(there) > 0
    if there and len(there) < len(tensors):
        _check_mixed(func, tensors)
        result_there = isinstance(tensors[0], DeviceTensor) if func.overloadpacket.__name__ in MIXING else True
    if (target := kwargs.get("device")) is not None:
        result_there = target.type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    generator = kwargs.get("generator")
    if generator is not None and result_there and generator.device.type != NAME:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}'")
    held = {id(x.values_on_cpu): x for x in there}
    result = FUSED.get(func, func)(*tree_map(_values, args), **tree_map(_values, kwargs))
    if torch.Tag.inplace_view in func.tags and there:
        with no_dispatch():  # the tensor on the device gets the new shape, too
            func(*args, **kwargs)

    def wrap(x):
        if not isinstance(x, torch.Tensor) or not result_there:
            return x
        return held.get(id(x)) if id(x) in held else DeviceTensor(x)

    return tree_map(wrap, result)


def _gru_cell(input_gates, hidden_gates, hidden, input_bias=None, hidden_bias=None):
    """The hidden state of a GRU after a step, and what its backward pass needs."""
    if input_bias is not None:
        input_gates, hidden_gates = input_gates + input_bias, hidden_gates + hidden_bias
    (input_reset, input_update, input_new), (reset, update, new) = (x.chunk(3, 1) for x in (input_gates, hidden_gates))
    reset, update = torch.sigmoid(input_reset + reset), torch.sigmoid(input_update + update)
    candidate = torch.tanh(input_new + reset * new)
    return candidate + update * (hidden - candidate), torch.cat((reset, update, candidate, hidden, new), 1)


def _gru_cell_backward(grad, workspace, has_bias):
    """The gradients with respect to the arguments of ``_gru_cell``."""
    reset, update, candidate, hidden, new = workspace.chunk(5, 1)
    grad_update = grad * (hidden - candidate) * update * (1 - update)
    grad_new = grad * (1 - update) * (1 - candidate.square())
    grad_reset = grad_new * new * reset * (1 - reset)
    gates = [torch.cat((grad_reset, grad_update, g), 1) for g in (grad_new, grad_new * reset)]
    return *gates, grad * update, *(g.sum(0) if has_bias else None for g in gates)


# Operations that accelerators have and the CPU lacks.
FUSED = {
    torch.ops.aten._thnn_fused_gru_cell.default: _gru_cell,
    torch.ops.aten._thnn_fused_gru_cell_backward.default: _gru_cell_backward,
}


def _check_mixed(func, tensors):
    """Raises RuntimeError unless the operation may take tensors of both devices: copies, and CPU scalars."""
    if func.overloadpacket.__name__ in MIXING:
        return
    on_host = [x for x in tensors if not isinstance(x, DeviceTensor)]
    if torch.Tag.pointwise in func.tags and all(x.dim() == 0 for x in on_host):
        return
    raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME}:0 and cpu in {func}")


def _values(x):
    return x.values_on_cpu if isinstance(x, DeviceTensor) else x
