"""Compilation of a function with a loop, for each size of its inputs, and what happens where torch cannot do it."""

import contextlib
import functools
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odebench.ode.compiled.fast_math import compile_with_fast_math
from odebench.ode.compiled.field import FieldModule, GraphField, UsedParameters
from odebench.ode.methods.compiled_step import own_code
from odebench.ode.methods.tableau import Tableau
from odebench.ode.problem import StateLayout

log = logging.getLogger(__name__)

Loop = Callable[..., Any]

# torch 2.12 refuses loops that write to tensors.
OLDEST_TORCH = "2.13"
# This many sizes get code of their own, with more products inlined by fast math; all further sizes share code.
STATIC_SIZES = 2
# A name in a guard: f, the module that holds it, or a global variable that neither torch nor the solver defines.
_OF_F = re.compile(r"\bfield\.f\b|\bmodule\b|\bG\['(?:__import_(?!torch_|odebench_dot_ode_)|___unnamed)")
# Lines of these folders are not the user's.
_OWN_FOLDERS = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))


class NotCompiledError(Exception):
    """The graph cannot be compiled; the message is the reason."""


def loop(condition: Loop, body: Loop, carried: tuple[Tensor, ...]) -> Sequence[Tensor]:
    """Carry tensors through ``body`` while ``condition`` holds: an operation of a compiled graph, or plain Python."""
    if torch.compiler.is_compiling():
        from torch._higher_order_ops.while_loop import while_loop

        def body_with_equal_strides(*carried: Tensor) -> tuple[Tensor, ...]:
            return tuple(map(_contiguous, body(*carried)))

        return while_loop(condition, body_with_equal_strides, tuple(map(_contiguous, carried)))
    while condition(*carried):
        carried = body(*carried)
    return carried


def num_graphs() -> int:
    """How many graphs torch has captured so far; it captures f again when its code or its Python objects change."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else dynamo.counters["stats"]["unique_graphs"]


def _contiguous(x: Tensor) -> Tensor:
    """The tensor with contiguous strides, also along dimensions of size 1: a loop must not change the strides."""
    return x if x.dim() < 2 else x.reshape(-1).reshape(x.shape)


class BatchLayout(StateLayout):
    """The layout of states with any number of rows, which a graph finds from the size of y. shapes: those of a row."""

    def unflatten(self, y: Tensor) -> Any:
        """See ``StateLayout.unflatten``."""
        return self.rebuild(self.split(y))

    def split(self, y: Tensor) -> list[Tensor]:
        """See ``StateLayout.split``."""
        rows = y.shape[-1] // sum(self.sizes)
        parts = (y,) if self.is_tensor else y.split_with_sizes([rows * size for size in self.sizes], dim=-1)
        return [part.view((*y.shape[:-1], rows, *shape)) for part, shape in zip(parts, self.shapes, strict=True)]

    def evaluate(self, f: Callable[..., Any], t: Tensor, state: Any, args: Sequence[Tensor]) -> Sequence[Tensor]:
        """See ``StateLayout.evaluate``."""
        rates, states = (pytree.tree_leaves(x) for x in (f(t, state, *self.rebuild_args(args)), state))
        for rate, y in zip(rates, states, strict=True):
            if rate.shape != y.shape or rate.dtype != y.dtype:
                raise ValueError("f(t, y) must return tensors of y's shape and dtype")
        return rates


@functools.lru_cache(maxsize=256)
def for_any_batch(layout: StateLayout) -> StateLayout:
    """Return the layout for any number of rows, if all tensors of the state have rows; else the layout itself."""
    first, shapes = [shape[:1] for shape in layout.shapes], tuple(shape[1:] for shape in layout.shapes)
    sizes = tuple(shape.numel() for shape in shapes)
    if not all(first) or len(set(first)) > 1 or not sum(sizes):
        return layout
    others = layout.dtype, layout.args_structure, layout.constants, layout.autocast
    return BatchLayout(layout.structure, shapes, sizes, *others)


class CompiledGraph:
    """A function that torch compiles when it is called first, and again for other sizes of its inputs.

    The first ``STATIC_SIZES`` sizes have code of their own, all others share code.

    kind: "solve" or "gradient", for messages. field: the field that the function evaluates.
    without_compiler: whether torch has found no C++ compiler; then it is not asked for any graph again.
    """

    without_compiler = False

    def __init__(self, function: Callable[..., Any], kind: str, field: GraphField) -> None:
        self.function, self._kind, self._field = function, kind, field
        # Computing cached properties inside would break the graph.
        _ = field.layout.is_tensor, field.layout.is_tuple, field.layout.view_shape
        self._static: dict[tuple[torch.Size, ...], _Code] = {}
        self._shared = _Code(function, field.math, f"{kind} for inputs of any size")
        self._failed = False

    def __call__(self, *inputs: Any) -> Any:
        """The function's results. Raises NotCompiledError, after one warning, if torch cannot compile it."""
        tensors = [x for item in inputs for x in ((item,) if isinstance(item, Tensor) else item or ())]
        code = self._find_code(tuple(x.shape for x in tensors))
        if self._failed or code.failed or CompiledGraph.without_compiler:
            raise NotCompiledError
        depth = torch._C._functorch.get_dynamic_layer_stack_depth()
        try:
            if code is self._shared:
                self._mark_sizes_that_vary(tensors)
            return code(*inputs)
        # torch raises many types: for code that it cannot capture, without a C++ compiler, where its private functions
        # have moved. Errors of f itself were raised by an evaluation before.
        except Exception as error:
            code.failed = True
            CompiledGraph.without_compiler |= "InvalidCxxCompiler" in str(error)
            # If f calls torch.func, torch has not left its transforms.
            torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
            with contextlib.suppress(RuntimeError):  # there may be no level of forward-mode derivatives
                torch._C._exit_dual_level(level=0)
            if code is not self._shared:
                self.refuse(_reason(error))
            # The first sizes stay compiled.
            _warn_once(self._field.f, f"{self._kind} for further sizes: {_reason(error)}")
            raise NotCompiledError from None

    def refuse(self, reason: str) -> NoReturn:
        """Raise NotCompiledError, now with a warning and in every later call without."""
        if not self._failed:
            self._failed = True
            _warn_once(self._field.f, f"{self._kind}: {reason}")
        raise NotCompiledError

    def _find_code(self, sizes: tuple[torch.Size, ...]) -> "_Code":
        code = self._static.get(sizes, self._shared)
        if code is self._shared and len(self._static) < STATIC_SIZES:
            code = self._static[sizes] = _Code(self.function, self._field.math, self._kind)
        return code

    def _mark_sizes_that_vary(self, tensors: list[Tensor]) -> None:
        """Let torch compile for any value of the sizes that differ from those of the first call."""
        for tensor, first in zip(tensors, next(iter(self._static)), strict=False):
            for dim, (size, first_size) in enumerate(zip(tensor.shape, first, strict=False)):
                if size != first_size:
                    torch._dynamo.maybe_mark_dynamic(tensor, dim)


class SolveGraphs:
    """The graphs of solves that differ only in numbers, and of their gradients.

    modules: those that f refers to. solve: the function of the forward graph.
    is_checked: whether f was evaluated once outside of the graph, where its result and its noise are checked.
    used: the parameters that f uses; None if they are unknown. known_sizes: of the inputs with which f used them.
    is_steady: False once f has changed its code or the parameters that it uses. Then each solve evaluates f to find
    them, since f may change back without a new graph.
    """

    def __init__(
        self, field: GraphField, modules: Sequence[nn.Module], method: Tableau, solve: Callable[..., Any]
    ) -> None:
        self.field, self.method = field, method
        self.module, self.is_checked = FieldModule(field.f, modules), False
        self.used: UsedParameters | None = None
        self.known_sizes: set[Any] = set()
        self.is_steady = True
        self.forward = CompiledGraph(solve, "solve", field)
        self._gradients: dict[Any, CompiledGraph] = {}

    def gradient(self, make: Callable[..., Any], *choices: Any, layout: Any = None) -> CompiledGraph:
        """The graph of the function make(field, module, *choices); another one for each layout of its inputs."""
        key = (make, choices, layout)
        if key not in self._gradients:
            function = make(self.field, self.module, *choices)
            self._gradients[key] = CompiledGraph(function, "gradient", self.field)
        return self._gradients[key]


class _Code:
    """A function that torch compiles once.

    math: "exact", or "fast" for the functions of ``fast_math``. name: for the log.
    """

    def __init__(self, function: Callable[..., Any], math: str, name: str) -> None:
        self._function, self._math, self._name = function, math, name
        self._compiled: Callable[..., Any] | None = None
        self.failed = False

    def __call__(self, *inputs: Any) -> Any:
        if self._compiled is not None:
            return self._compiled(*inputs)
        log.info("compiling the %s, once; this takes half a minute or more", self._name)
        start = time.perf_counter()
        self._compiled = self._compile()
        results = self._compiled(*inputs)
        log.info("compiled in %.0f s", time.perf_counter() - start)
        return results

    def _compile(self) -> Callable[..., Any]:
        if torch.__version__ < OLDEST_TORCH:
            raise RuntimeError(f"torch {torch.__version__} is older than {OLDEST_TORCH}")
        from torch._higher_order_ops.while_loop import while_loop_op

        # Else inductor would compile in each process again.
        while_loop_op._cacheable = True
        options: dict[str, Any] = {"guard_filter_fn": _guards_of_f}
        how: dict[str, Any] = {"options": options, "backend": compile_with_fast_math}
        if self._math == "exact":
            how = {"options": options | {"cpp_wrapper": True}}
        return torch.compile(own_code(self._function), fullgraph=True, dynamic=False, **how)


def _guards_of_f(guards: Sequence[Any]) -> list[bool]:
    """Which of torch's guards to check in each call: those on f, its globals, the inputs, and torch's modes.

    Most are on constants of the loop and on functions of torch, which do not change. Checking them takes 6 % of the
    time of a small solve.
    """
    return [not guard.name or guard.guard_type == "TENSOR_MATCH" or bool(_OF_F.search(guard.name)) for guard in guards]


@functools.lru_cache(maxsize=256)
def _warn_once(f: Callable[..., Any], text: str) -> None:
    """Warn about a vector field; training, evaluation and sampling compile it separately, for the same result."""
    warnings.warn(f"compile='solve' has no effect on this {text}", stacklevel=4)


def _reason(error: Exception) -> str:
    """Why torch could not compile, with the user's line where it stopped."""
    if type(error).__name__ == "FailOnRecompileLimitHit":
        return "f reads numbers in Python that change from solve to solve; pass them as tensors in args"
    # Of an operation inside the loop, the reason follows a general line.
    text = str(error).rpartition("Got graph break/error:")[2].strip()
    reason = text.splitlines()[0] if text else type(error).__name__
    frames = [x for x in getattr(error, "real_stack", None) or () if not x.filename.startswith(_OWN_FOLDERS)]
    if frames:
        line = frames[-1]
        reason += f", at {Path(line.filename).name}:{line.lineno}: {line.line}"
    elif explanation := re.search("Explanation: (.*?[.])", text):  # of a change of an object outside of the loop
        reason += f": {explanation[1]}"
    return f"torch cannot compile it: {reason}"
