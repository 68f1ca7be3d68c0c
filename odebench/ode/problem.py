"""The user's problem in the solver's form: the state is flat, times are floats, and the field counts its calls."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odebench.ode.arguments import as_number, check_times, times_as_tensor
from odebench.ode.noise import evaluate_watched, refuse_noise
from odebench.ode.once_differentiable import first_derivative_only
from odebench.ode.solution import Stats
from odebench.ode.transfer import store_times

_TENSOR = "tensor"
_LEAF = pytree.tree_structure(0)

CHANGED_IN_PLACE = "f(t, y) changed y in place; let it first make a new tensor, for example by ReLU(inplace=False)"


@dataclass(unsafe_hash=True)
class StateLayout:
    """How the user's state and arguments are flattened; two problems with equal layouts call f in the same way.

    structure: the pytree structure of the state. shapes, sizes, dtype: those of its tensors.
    args_structure: the pytree structure of the args. constants: ("tensor", None) or ("constant", value) for each leaf.
    autocast: the dtype of the caller's autocast, which applies to f; None if autocast is off.
    is_tensor, is_tuple: whether the state is one tensor, or a tuple of tensors, which need no pytree.
    view_shape: the shape of the state for ``view``, if it is one tensor and there are no args and no autocast.

    It is never changed. Not frozen, since a frozen object takes three times as long to make.
    """

    structure: pytree.TreeSpec = field(hash=False)  # older torch cannot hash it
    shapes: tuple[torch.Size, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    args_structure: pytree.TreeSpec = field(hash=False)
    constants: tuple[tuple[str, Any], ...]
    autocast: torch.dtype | None
    is_tensor: bool = field(init=False, compare=False)
    is_tuple: bool = field(init=False, compare=False)
    view_shape: tuple[Any, ...] | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        self.is_tensor = self.structure.is_leaf()
        self.is_tuple = not self.is_tensor and self.structure == _tuple_structure(len(self.sizes))
        plain = self.is_tensor and self.args_structure.num_children == 0 and self.autocast is None
        self.view_shape = (tuple(self.shapes[0]) or ((),)) if plain else None

    def unflatten(self, y: Tensor) -> Any:
        """Return a flat state [*batch, N] in the user's structure; its tensors are views [*batch, *shape]."""
        if self.is_tensor and y.dtype == self.dtype:
            return y.view((*y.shape[:-1], *self.shapes[0]))
        return self.rebuild(self.split(y))

    def split(self, y: Tensor) -> list[Tensor]:
        """Split a flat state [*batch, N] into its tensors, which are views [*batch, *shape], in order."""
        if y.dtype != self.dtype:
            y = y.to(self.dtype)
        batch = y.shape[:-1] if y.dim() > 1 else ()
        parts = (y,) if self.is_tensor else y.split_with_sizes(self.sizes, dim=-1)
        return [part.view((*batch, *shape)) for part, shape in zip(parts, self.shapes, strict=True)]

    def rebuild(self, parts: Sequence[Tensor]) -> Any:
        """Return the state in the user's structure; parts: its tensors, in order."""
        if self.is_tensor:
            return parts[0]
        return tuple(parts) if self.is_tuple else pytree.tree_unflatten(parts, self.structure)

    def rebuild_args(self, args: Sequence[Tensor]) -> Any:
        """Return the arguments in the user's structure; args: the tensors in them, in order."""
        if self.args_structure.num_children == 0:
            return ()
        tensors = iter(args)
        leaves = [next(tensors) if kind == _TENSOR else value for kind, value in self.constants]
        return pytree.tree_unflatten(leaves, self.args_structure)

    def evaluate_flat(
        self, f: Callable[..., Any], t: Tensor, y: Tensor, args: Sequence[Tensor], out: Tensor | None = None
    ) -> Tensor:
        """Return dy/dt [N] at a flat state y [N], in ``out`` [N] if that saves a copy; see ``evaluate`` for errors."""
        return flatten(self.evaluate(f, t, self.unflatten(y), args), y.dtype, out)

    def evaluate(self, f: Callable[..., Any], t: Tensor, state: Any, args: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the tensors of dy/dt at a state, which is given in the user's structure.

        Raises ValueError if f does not return a derivative for each element of the state.
        """
        if self.autocast is None:
            return self.check(f(t, state, *self.rebuild_args(args)))
        # Without the cache of autocast: it would keep cast weights and their graph from one call to the next.
        with torch.autocast(t.device.type, self.autocast, cache_enabled=False):
            return self.check(f(t, state, *self.rebuild_args(args)))

    def check(self, rate: Any, batch: tuple[int, ...] = (), hint: str = "") -> Sequence[Tensor]:
        """Return the tensors of dy/dt. Raises ValueError unless each has the shape [*batch, *shape in the state]."""
        if self.is_tensor and isinstance(rate, Tensor) and rate.shape == self.shapes[0] and rate.dtype == self.dtype:
            return (rate,)
        if self.is_tuple and type(rate) is tuple and len(rate) == len(self.shapes):
            leaves: Sequence[Any] = rate
        else:
            leaves, structure = pytree.tree_flatten(rate)
            if structure != self.structure:
                raise ValueError(
                    "f(t, y) must return the structure of y (the same tuples, lists and dicts, keys in order)"
                )
        for leaf, shape in zip(leaves, self.shapes, strict=True):
            expected = (*batch, *shape)
            if not isinstance(leaf, Tensor) or leaf.shape != expected:
                got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ValueError(f"f(t, y) must return tensors of y's shape: {expected} expected, got {got}{hint}")
            if leaf.dtype != self.dtype and self.autocast is None:
                raise ValueError(f"f(t, y) must return y's dtype: {self.dtype} expected, got {leaf.dtype}")
        return leaves


@dataclass(frozen=True)
class EvaluationGraph:
    """One evaluation of f with its autograd graph. Its tensors are not flat, since flattening would enlarge the graph.

    leaves: the tensors of the state, which are leaves of the graph. outputs: the tensors of dy/dt.
    """

    leaves: Sequence[Tensor]
    outputs: Sequence[Tensor]

    def grad_outputs(self, gradient: Tensor) -> list[Tensor]:
        """Return the gradients with respect to the outputs; gradient: that with respect to the flat dy/dt [N]."""
        parts = (gradient,) if len(self.outputs) == 1 else gradient.split_with_sizes([r.numel() for r in self.outputs])
        like = zip(parts, self.outputs, strict=True)
        return [part.view_as(r) if part.dtype == r.dtype else part.view_as(r).to(r.dtype) for part, r in like]


@dataclass(frozen=True)
class FieldArguments:
    """The function f and its arguments except t and y. The caller counts its evaluations of f in ``stats``.

    to_tensor: a function that makes a tensor from times and step sizes.
    """

    f: Callable[..., Any]
    layout: StateLayout
    args: Sequence[Tensor]
    stats: Stats
    to_tensor: Callable[[Sequence[float]], Tensor]


class FlatProblem:
    """The problem dy/dt = f(t, y, *args), y(t_0) = y0 on a flat state: what both kinds of stepping share.

    y0: the flat state [*batch, N], which holds all tensors of the user's state one after the other. It is float32 for
        a state of half precision, which is too coarse for sums and error estimates.
    t: the times as the user gave them, converted to a tensor.
    args: the tensors inside the user's args, in order.
    stats: counts every call of f.
    report_noise: called with the reason if f changes from one evaluation to the next. The second evaluation is checked,
        since the first may draw noise that the others share.
    checks_first: whether the first evaluation is checked too, as a compiled solve may evaluate f only once in Python.
    buffered: the layers of f with buffers, which are compared before and after the second evaluation.
    time_dtype: the dtype of the times that f gets. It is the real dtype of the state, as a device may lack float64.
    """

    def __init__(self, f: Callable[..., Any], y0: Any, t: Any, args: Any, batch_dims: int) -> None:
        if not callable(f):
            raise TypeError(f"f must be callable as f(t, y, *args), got {type(f).__name__}")
        self.f = f
        self.report_noise: Callable[[str], None] = refuse_noise
        self.checks_first = False
        self.buffered: list[nn.Module] = []
        leaves, structure = _flatten_tree(y0)
        check_state(leaves)
        self.check_batch(leaves)
        if not isinstance(args, tuple | list):
            raise TypeError(f"args must be a tuple, as in args=(x,), got {type(args).__name__}")
        arg_leaves, args_structure = _flatten_tree(args)
        # The caller's autocast applies to f only: states, sums and error estimates add small numbers to large ones.
        dtype, device_type = leaves[0].dtype, leaves[0].device.type
        autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
        if structure is _LEAF and not args:
            self.layout = _layout_of_tensor(leaves[0].shape[batch_dims:], dtype, autocast)
        else:
            shapes = tuple(leaf.shape[batch_dims:] for leaf in leaves)
            sizes = tuple(shape.numel() for shape in shapes)
            constants = tuple((_TENSOR, None) if isinstance(a, Tensor) else ("constant", a) for a in arg_leaves)
            self.layout = StateLayout(structure, shapes, sizes, dtype, args_structure, constants, autocast)
        self.y0 = self.flat(leaves)
        if self.y0.dtype in (torch.bfloat16, torch.float16):
            self.y0 = self.y0.float()
        elif len(leaves) == 1:
            # A copy, since an f that changes y in place does so before the error is raised.
            self.y0 = self.y0.clone()
        self.time_dtype = self.y0.real.dtype
        self.t = times_as_tensor(t)
        self.args = [leaf for leaf in arg_leaves if isinstance(leaf, Tensor)]
        self.stats = Stats()

    def check_batch(self, leaves: Sequence[Tensor]) -> None:
        """Raise ValueError unless the tensors of the state have the same batch dimensions."""

    def flat(self, leaves: Sequence[Tensor]) -> Tensor:
        """Join the tensors of a state into the flat state."""
        return flatten(leaves)

    def flat_tolerance(self, tolerance: Any, name: str) -> float | Tensor:
        """Return a tolerance as a number; if it has the structure of the state, as a tensor in the shape of ``y0``."""
        leaves, structure = pytree.tree_flatten(tolerance)
        if isinstance(tolerance, Number) or structure != self.layout.structure:
            try:
                return as_number(name, tolerance)
            except TypeError as error:
                raise ValueError(f"{name} must be a number, or have the structure of y0") from error
        how: dict[str, Any] = {"dtype": self.y0.real.dtype, "device": self.y0.device}
        tensors = [x.to(**how) if isinstance(x, Tensor) else torch.tensor(as_number(name, x), **how) for x in leaves]
        for i, row_shape in enumerate(self.layout.shapes):
            shape = (*self.y0.shape[:-1], *row_shape)
            try:
                tensors[i] = tensors[i].expand(shape)
            except RuntimeError as error:
                got = tuple(tensors[i].shape)
                raise ValueError(f"{name} has shape {got}, which does not broadcast to y0's, {shape}") from error
        return self.flat(tensors)

    def _watched(self, t: Tensor, *inputs: Any) -> Any:
        """Call f; in the second evaluation, or in the first of a backward pass, check whether its result changes."""
        if self.stats.nfe < 2 and self.stats.backward is None and not self.checks_first:
            return self.f(t, *inputs)
        return evaluate_watched(self.f, self.report_noise, self.buffered, t, *inputs)


class InitialValueProblem(FlatProblem):
    """A problem on a flat state y0 [N]. The integrator calls it as the field of the solve.

    times: the T times as floats, strictly increasing or decreasing.
    first_output: the user's y0, flat, if ``y0`` has received a gradient with respect to the first time; else None.
    """

    def __init__(self, f: Callable[..., Any], y0: Any, t: Tensor | Sequence[float], args: tuple[Any, ...]) -> None:
        super().__init__(f, y0, t, args, batch_dims=0)
        self.times = check_times(self.t)
        self.first_output: Tensor | None = None

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """The shapes of the state's tensors."""
        return self.layout.shapes

    def __call__(
        self,
        t: Tensor,
        y: Tensor,
        in_result: bool = True,
        out: Tensor | None = None,
        args: Sequence[Tensor] | None = None,
        stats: Stats | None = None,
    ) -> Tensor:
        """Return dy/dt [N] at a flat state [N].

        out: memory [N] for the result, used if that saves a copy.
        args: the tensors in the user's args. stats: counts the evaluation. Both are by default those of the problem.
        """
        (stats or self.stats).nfe += 1
        f, layout = self.f, self.layout
        if self.stats.nfe <= 2:
            f, y = self._watched, counting_changes(y)
        version = None if y.is_inference() else y._version
        if layout.view_shape and y.dtype == layout.dtype and y.dim() == 1:
            # The general way below makes more function calls, which take as long as a small f.
            rate = layout.check(f(t, y.view(*layout.view_shape)))[0].reshape(-1)
        else:
            rate = layout.evaluate_flat(f, t, y, self.args if args is None else args, out)
        if version is not None and y._version != version:
            raise ValueError(CHANGED_IN_PLACE)
        return rate

    def evaluate(self, t: Tensor, y: Tensor, args: Sequence[Tensor]) -> Tensor:
        """Return dy/dt [N] at a flat state [N], without counting the evaluation."""
        return self(t, y, args=args, stats=Stats())

    def field_arguments(self) -> FieldArguments:
        """Return f and its arguments, for a compiled step."""
        return FieldArguments(self.f, self.layout, self.args, self.stats, self.to_tensor)

    def time_tensors(self, times: Sequence[float]) -> Sequence[Tensor]:
        """Return the times as f gets them: scalar tensors on the device of the state."""
        dtype, device = self.time_dtype, self.y0.device
        tensors: Sequence[Tensor]
        if len(times) == 1:  # without ``unbind``, which takes longer
            tensors = [torch.scalar_tensor(times[0], dtype=dtype, device=device)]
        else:
            tensors = self.to_tensor(times).unbind()
        if device.type != "cpu":
            store_times(tensors, times)
        return tensors

    def to_tensor(self, values: Sequence[float]) -> Tensor:
        """Return times or step sizes as a tensor [len(values)] on the device of the state."""
        device = self.y0.device
        if device.type == "cpu":
            return torch.tensor(values, dtype=self.time_dtype, device=device)
        # Filled on the device: a copy from the host would synchronise.
        numbers = [torch.full((), value, dtype=self.time_dtype, device=device) for value in values]
        return torch.stack(numbers) if numbers else torch.empty(0, dtype=self.time_dtype, device=device)

    def evaluate_with_graph(self, t: Tensor, y: Tensor, args: Sequence[Tensor], stats: Stats | None) -> EvaluationGraph:
        """Evaluate f with its graph, even under ``torch.no_grad``; args, stats: see ``__call__``."""
        (stats or self.stats).nfe += 1
        leaves = [part.detach().requires_grad_() for part in self.layout.split(y)]
        f = self.f if self.stats.nfe > 2 else self._watched
        with torch.enable_grad():
            return EvaluationGraph(leaves, self.layout.evaluate(f, t, self.layout.rebuild(leaves), args))

    def time_derivative_term(self, i: int, y: Tensor) -> Tensor:
        """Return (t_i - t_i.detach()) f(t_i, y) [N]: the value is zero, the derivative with respect to t_i is f."""
        with torch.no_grad():
            # Detached: an f that differentiates with respect to y could not use y's graph here.
            f = self(self.time_tensors([self.times[i]])[0], y.detach())
        return (first_derivative_only(self.t[i]) - self.t[i].detach()).to(y.device, y.real.dtype) * f

    def unflatten(self, y: Tensor) -> Any:
        """Return a flat state in the user's structure; see ``StateLayout.unflatten``."""
        return self.layout.unflatten(y)


@functools.lru_cache(maxsize=64)
def _tuple_structure(size: int) -> pytree.TreeSpec:
    return pytree.tree_structure((0,) * size)


@functools.lru_cache(maxsize=256)
def _layout_of_tensor(shape: torch.Size, dtype: torch.dtype, autocast: torch.dtype | None) -> StateLayout:
    return StateLayout(_LEAF, (shape,), (shape.numel(),), dtype, _tuple_structure(0), (), autocast)


def _flatten_tree(tree: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """Do what ``pytree.tree_flatten`` does, which for a few tensors takes as long as a small f."""
    if isinstance(tree, Tensor):
        return [tree], _LEAF
    if type(tree) is tuple and all(isinstance(leaf, Tensor) for leaf in tree):
        return list(tree), _tuple_structure(len(tree))
    return pytree.tree_flatten(tree)


def flatten(leaves: Sequence[Tensor], dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
    """Concatenate tensors into one tensor [N] of the given dtype, or else of theirs. If there are several tensors and
    memory ``out`` [N] is given, they are joined in it."""
    if len(leaves) == 1:
        y = leaves[0].reshape(-1).resolve_conj().resolve_neg()
    else:
        same = out is not None and all(leaf.dtype == out.dtype for leaf in leaves)
        y = torch.cat([leaf.reshape(-1) for leaf in leaves], out=out if same else None)
    return y if dtype is None or y.dtype == dtype else y.to(dtype)


def counting_changes(y: Tensor) -> Tensor:
    """Return y, or a copy if y is an inference tensor: those do not count changes in place."""
    if not y.is_inference():
        return y
    with torch.inference_mode(False):
        return y.clone()


def check_state(leaves: list[Any]) -> None:
    """Raise TypeError or ValueError unless these are the tensors of a state, all of one dtype and device."""
    for leaf in leaves or [None]:
        if not isinstance(leaf, Tensor):
            raise TypeError("y0 must be a tensor, or tuples, lists and dicts of tensors")
    first = leaves[0]
    for leaf in leaves[1:]:
        if leaf.dtype != first.dtype or leaf.device != first.device:
            raise ValueError("all tensors of y0 must have one dtype and one device")
    if not (first.dtype.is_floating_point or first.dtype.is_complex):
        raise ValueError(f"y0 must be of a floating-point or complex dtype, got {first.dtype}")
