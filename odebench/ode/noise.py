"""Detection of vector fields that change from one evaluation to the next.

Such fields are recognised by their layers, and by evaluating them twice.
"""

import dis
import functools
import itertools
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils import _pytree as pytree

from odebench.ode.torch_func import under_vmap

RANDOM = (
    "draws random numbers at every evaluation; call .eval() on layers such as dropout, or draw the numbers once, "
    "before the solve, and pass them as args=(noise,)"
)
CHANGING = "changes a buffer, and with it its result, at every evaluation; change it before the solve"

_RANDOM_OR_BUFFERED = (_DropoutNd, nn.RNNBase, _SpectralNorm, _BatchNorm)


def _training_mode(layer: str) -> str:
    return (
        f"has {layer} in training mode, which changes at every evaluation; call .eval() on it for the solve, take it "
        "out of f, or use GroupNorm or LayerNorm"
    )


def find_layers(f: Callable[..., Any]) -> tuple[list[str], list[nn.Module]]:
    """Find the layers of f that change at every evaluation in training mode, and the layers with buffers.

    Returns the names of the former, and the latter. They are found without calling f: in a module, and in the objects
    that a function or a method refers to. ``evaluate_watched`` finds other layers.
    """
    changing, buffered = [], []
    for held, whole in referenced_objects(f):
        for path, owner in _used_parts(f, held, whole) if isinstance(whole, nn.Module) else ():
            layers = _all_layers(owner)
            buffered += [layer for layer in layers if layer._buffers]
            suspects = (x for x in layers if isinstance(x, _RANDOM_OR_BUFFERED) or x._forward_pre_hooks)
            if any(map(_changes_in_training, suspects)):
                changing += [
                    f"{'.'.join(filter(None, (path, name))) or 'f'} ({type(layer).__name__})"
                    for name, layer in owner.named_modules()
                    if _changes_in_training(layer)
                ]
    return changing, buffered


def _used_parts(f: Any, name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a module that a function f with this name for it uses; the module itself if f may use them all."""
    used = _attributes_used(f.__code__, name) if isinstance(f, types.FunctionType) else None
    if used is None:
        return [(name, module)]
    found: list[tuple[str, Any]] = []
    plain = {*module._parameters, *(key for key, x in vars(module).items() if not callable(x))} - {"_modules"}
    for key in sorted(used - plain):
        if key in module._modules:
            found.append((key, module._modules[key]))
        elif not hasattr(nn.Module, key) and isinstance(method := getattr(type(module), key, None), types.FunctionType):
            found += referenced_objects(types.MethodType(method, module))
        else:
            return [(name, module)]
    return [(f"{name}.{key}", x) for key, x in found if isinstance(x, nn.Module)]


@functools.lru_cache(maxsize=256)
def _attributes_used(code: types.CodeType, name: str) -> frozenset[str] | None:
    """The attributes of a variable that code reads; None if it uses the variable in another way, too."""
    if any(isinstance(one, types.CodeType) for one in code.co_consts):  # functions inside
        return None
    instructions, used = list(dis.get_instructions(code)), set()
    for one, following in itertools.pairwise(instructions):
        if one.argval == name and one.opname in ("LOAD_DEREF", "LOAD_GLOBAL"):
            if following.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                return None
            used.add(following.argval)
    return frozenset(used)


def _all_layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers that ``module.modules()``, which takes longer, yields in another order."""
    layers, seen = [module], {module}
    for layer in layers:
        for child in layer._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                layers.append(child)
    return layers


def _changes_in_training(layer: nn.Module) -> bool:
    if not layer.training:
        return False
    if isinstance(layer, _DropoutNd):
        return layer.p > 0
    if isinstance(layer, nn.RNNBase):  # on a GPU, cuDNN draws the numbers for dropout without torch's generator
        return layer.dropout > 0 and layer.num_layers > 1
    return _updates_buffers(layer)


def _updates_buffers(layer: nn.Module) -> bool:
    if isinstance(layer, _SpectralNorm):
        return bool(layer._buffers)  # for a vector, it needs neither power iteration nor buffers
    hooks = layer._forward_pre_hooks.values()
    return isinstance(layer, _BatchNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks)


def referenced_objects(f: Any, seen: frozenset[Any] = frozenset()) -> list[tuple[str, Any]]:
    """Return the objects that f refers to, with their names, without calling f.

    If f is a method, its object itself is not returned, but only those attributes of it that the method uses.

    seen: the methods visited already.
    """
    if isinstance(f, nn.Module):
        return [("", f)]
    if isinstance(f, functools.partial):
        return [*referenced_objects(f.func), *(("", value) for value in f.args), *f.keywords.items()]
    if isinstance(f, types.FunctionType):
        cells = zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
        held = {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}
        return [*held.items(), *((name, f.__globals__.get(name)) for name in _globals_of(f.__code__))]
    method = f if isinstance(f, types.MethodType) else getattr(f, "__call__", None)  # noqa: B004
    owner, function = getattr(method, "__self__", None), getattr(method, "__func__", None)
    if not isinstance(function, types.FunctionType) or function in seen:
        return []
    attributes = {**getattr(owner, "__dict__", {}), **getattr(owner, "_modules", {})}
    found = referenced_objects(function)
    for name in function.__code__.co_names:
        if name in attributes:
            found.append((name, attributes[name]))
        elif isinstance(other := getattr(type(owner), name, None), types.FunctionType):
            found += referenced_objects(types.MethodType(other, owner), seen | {function})
    return found


def held_objects(f: Any) -> dict[str, Any]:
    """Return the objects that f refers to and the attributes of its modules, by name."""
    held: dict[str, Any] = {}
    for name, value in referenced_objects(f):
        held[name] = value
        for path, layer in value.named_modules(prefix=name) if isinstance(value, nn.Module) else ():
            held |= {f"{path}.{key}".lstrip("."): attribute for key, attribute in vars(layer).items()}
    return held


@functools.lru_cache(maxsize=256)
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    """Return the global names that a code object uses, without the names of attributes."""
    return tuple(dict.fromkeys(i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"))


def refuse_layers_in_training_mode(f: Callable[..., Any], args: Iterable[Any] = ()) -> list[nn.Module]:
    """Raise ValueError if f or a module among args has a layer in training mode that changes at every evaluation.

    The error estimate would be noisy, and the statistics of batch normalisation would be updated at every evaluation.

    Returns the layers of f with buffers, for ``evaluate_watched``.
    """
    changing, buffered = find_layers(f)
    for arg in args:
        changing += find_layers(arg)[0] if isinstance(arg, nn.Module) else []
    if changing:
        refuse_noise(_training_mode(changing[0]))
    return buffered


def refuse_noise(reason: str) -> None:
    """Raise ValueError, since f changes from one evaluation to the next.

    Error control would treat the change as an error, and a backward pass would evaluate another f.
    """
    raise ValueError(f"f {reason}")


def warn_of_changing_layers(f: Callable[..., Any]) -> tuple[Callable[[str], None], list[nn.Module]]:
    """Warn the caller of ``odeint`` about layers of f that change in training mode.

    Returns a function that warns about other noise, and the layers of f with buffers; both for ``evaluate_watched``.
    """

    def warn(reason: str, stacklevel: int = 2) -> None:
        warnings.warn(f"func {reason}: error control sees noise", stacklevel=stacklevel)

    changing, buffered = find_layers(f)
    if changing:
        warn(_training_mode(changing[0]), stacklevel=6)
        return lambda reason: None, []
    return warn, buffered


def evaluate_watched(
    f: Callable[..., Any], report: Callable[[str], None], buffered: Iterable[nn.Module], t: Tensor, *inputs: Any
) -> Any:
    """Return f(t, *inputs); call ``report(reason)`` if f changes from one evaluation to the next.

    Two things are reported: a layer in training mode that updates its buffers, and a result that differs when f is
    evaluated again. f is evaluated again only if it drew random numbers from torch's default generators or changed a
    buffer. This alone is no proof: another thread may have drawn the numbers, and the buffer may only count calls.

    buffered: layers with buffers. Further layers that a function f calls are found here.

    The state of a CUDA generator is read on the host, which does not synchronise.
    """
    if torch.compiler.is_compiling():
        return f(t, *inputs)
    before = _random_states(t.device)
    layers: list[str] = []
    buffers = [state for layer in buffered for state in _buffer_states(layer)]
    with _watch_layers(f, layers, buffers):
        rate = f(t, *inputs)
    if layers:
        report(_training_mode(layers[0]))
        return rate
    drew = not all(map(torch.equal, before, _random_states(t.device)))
    if not drew and not any(buffer.changed() for buffer in buffers):
        return rate
    # Copies: f may reuse the memory of its result.
    first = [x.detach().clone() for x in _tensors(rate)]
    rate = f(t, *inputs)
    if not all(map(_equal, first, _tensors(rate))):
        report(RANDOM if drew else CHANGING)
    return rate


class _BufferState(NamedTuple):
    """A buffer of a layer, and its version when the evaluation began."""

    layer: nn.Module
    name: str
    buffer: Tensor
    version: int

    def changed(self) -> bool:
        return self.layer._buffers.get(self.name) is not self.buffer or self.buffer._version != self.version


def _buffer_states(layer: nn.Module) -> list[_BufferState]:
    buffers = ((name, x) for name, x in layer._buffers.items() if x is not None and not x.is_inference())
    return [_BufferState(layer, name, x, x._version) for name, x in buffers]


def _watch_layers(f: Callable[..., Any], layers: list[str], buffers: list[_BufferState]) -> AbstractContextManager[Any]:
    """Return a context that records the layers that this thread calls.

    Layers in training mode that update their buffers are appended to ``layers``, and the buffers of all called layers
    to ``buffers``. For a module f the context does nothing, since its layers are known.
    """
    # The wrappers of this package hold the user's function in ``func``. Not getattr, which is slow for a module without
    # that attribute.
    if isinstance(getattr(f, "__dict__", {}).get("func", f), nn.Module):
        return nullcontext()
    dynamo = sys.modules.get("torch._dynamo.utils")
    # Code that torch.compile traces under the hook is compiled again without it.
    if dynamo is not None and dynamo.counters["frames"]:
        return nullcontext()
    thread = threading.get_ident()

    def note(layer: nn.Module, _: Any) -> None:
        if not layer._buffers or threading.get_ident() != thread:
            return
        buffers.extend(_buffer_states(layer))
        if layer.training and _updates_buffers(layer):
            layers.append(type(layer).__name__)

    return register_module_forward_pre_hook(note)


def _random_states(device: torch.device) -> list[Tensor]:
    """Return the states of the default random generators of the host and of the device, on the host."""
    # As integers of 8 bytes, which are faster to compare.
    states = [torch.default_generator.get_state().view(torch.int64)]
    if device.type == "cuda" and torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
        states.append(torch.cuda.default_generators[device.index or 0].get_state())
    return states


def _tensors(rate: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(rate) if isinstance(x, Tensor)]


def _equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of one shape are equal, also in NaN; True if ``torch.func.vmap`` hides the values."""
    return under_vmap(b) or torch.allclose(a, b.detach(), rtol=0, atol=0, equal_nan=True)
