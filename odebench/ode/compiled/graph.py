"""Compilation of a function with a loop, and what happens where torch cannot do it."""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from odebench.ode.methods.compiled_step import own_code

log = logging.getLogger(__name__)

Loop = Callable[..., Any]


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


class CompiledGraph:
    """A function that torch compiles when it is called first; kind: "solve" or "gradient", for messages."""

    def __init__(self, function: Callable[..., Any], kind: str) -> None:
        self.function, self._kind = function, kind
        self._compiled: Callable[..., Any] | None = None
        self._failed = False

    def __call__(self, *inputs: Any) -> Any:
        """The function's results. Raises NotCompiledError, after one warning, if torch cannot compile it."""
        if self._failed:
            raise NotCompiledError
        try:
            if self._compiled is None:
                self._compiled = self._compile()
            return self._compiled(*inputs)
        # torch raises many types: for code that it cannot capture, without a C++ compiler, where its private functions
        # have moved. Errors of f itself were raised by an evaluation before.
        except Exception as error:
            if type(error).__name__ == "FailOnRecompileLimitHit":
                self.refuse("f reads numbers in Python that change from solve to solve; pass them as tensors in args")
            # Of an operation inside the loop, the reason follows a general line.
            lines = str(error).rpartition("Got graph break/error:")[2].strip().splitlines()
            self.refuse(f"torch cannot compile it: {lines[0] if lines else type(error).__name__}")

    def refuse(self, reason: str) -> NoReturn:
        """Raise NotCompiledError, now with a warning and in every later call without."""
        if not self._failed:
            self._failed = True
            warnings.warn(f"compile='solve' has no effect on this {self._kind}: {reason}", stacklevel=2)
        raise NotCompiledError

    def _compile(self) -> Callable[..., Any]:
        from torch._higher_order_ops.while_loop import while_loop_op

        # Else inductor would compile in each process again.
        while_loop_op._cacheable = True
        log.info("compiling the %s, about 30 s, once for each vector field and size of its state", self._kind)
        function = own_code(self.function)
        return torch.compile(function, fullgraph=True, dynamic=False, options={"cpp_wrapper": True})
