"""What a vector field takes from its surroundings: found in the graph of one evaluation, or refused, never lost.

The leaves of the graph are those tensors, and some that f makes for itself, to differentiate something by them. They
are told apart by what is left of them without the graph: nobody else has the latter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.weak import TensorWeakRef

from odebench.ode.problem import EvaluationGraph, InitialValueProblem, flatten


@dataclass(frozen=True)
class FirstEvaluation:
    """f = f(t, y, args) at the first time, y [N]; with its graph, where that was wanted: from y, args and the
    ``reached`` ones of the ``parameters``."""

    t: Tensor
    y: Tensor
    args: list[Tensor]
    f: Tensor
    parameters: list[Tensor]
    reached: list[Tensor]


def first_evaluation(problem: InitialValueProblem, mode: str, with_graph: bool = False) -> FirstEvaluation:
    """f(t0, y0) and every leaf that f reaches and that wants a gradient.

    The graph of this one evaluation shows what f takes from its surroundings, parameters in closures included, so
    that none gets a silent zero. A tensor that was computed outside f cannot be reached again by a
    hand-written backward pass and is refused, in the name of the gradient ``mode``.
    """
    y, args = problem.y0.detach().requires_grad_(), [leaf(arg) for arg in problem.args]
    (t,) = problem.time_tensors(problem.times[:1])
    with torch.enable_grad():
        # Autograd numbers its nodes in the order they are made: a smaller number was made before f ran.
        fence = (torch.zeros((), requires_grad=True) * 1).grad_fn
        assert fence is not None
        problem.stats.nfe += 1
        f = problem.evaluate(t, y, args)
    found = leaves(f, mode, fence._sequence_nr())
    f = f if with_graph else f.detach()
    own = set(map(id, (y, *args)))
    reached = [x for x in alive(found) if id(x) not in own]
    module = problem.f.parameters() if isinstance(problem.f, nn.Module) else ()
    parameters = [p for p in dict.fromkeys((*module, *reached)) if p.requires_grad]
    if any(p._backward_hooks for p in parameters):
        raise ValueError(
            f"gradient={mode!r}: a parameter of f has a gradient hook, which would run at every evaluation of the "
            "backward pass; use gradient='backprop', or change the gradient after backward()"
        )
    return FirstEvaluation(t, y, args, f, parameters, reached)


def leaves(result: Tensor, mode: str, fence: int = 0) -> list[TensorWeakRef]:
    """The leaf tensors that want a gradient in the graph of what f gave, each once.

    Raises ValueError for a node that was made before the one numbered ``fence``: it is outside of f.
    """
    found: list[TensorWeakRef] = []
    seen, todo = set(), _ends([result])
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.append(TensorWeakRef(variable))
        elif node._sequence_nr() < fence:
            raise ValueError(
                f"gradient={mode!r}: f uses a tensor that was computed outside of it (by {node.name()}) and wants a "
                "gradient; pass it through args=(...), or use gradient='backprop'"
            )
        todo += [parent for parent, _ in node.next_functions]
    return found


def alive(found: Iterable[TensorWeakRef]) -> list[Tensor]:
    """The tensors that somebody still has."""
    return [tensor for ref in found if (tensor := ref()) is not None]


def leaf(tensor: Tensor) -> Tensor:
    """The same numbers without their graph, wanting a gradient where the tensor does."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


class Targets:
    """Parameters and argument tensors of a backward pass, and their gradients so far.

    args: the argument tensors as f is to get them; leaves that stand for them may be given.
    reached: the parameters that f has used at the first time; None leaves what f uses to the caller, and unchecked.
    way_out: what the user is told to do about a tensor that would get no gradient.
    wanted: what gets a gradient, parameters first; ``totals`` are their gradients.
    """

    def __init__(
        self,
        problem: InitialValueProblem,
        mode: str,
        parameters: Sequence[Tensor],
        args: Sequence[Tensor],
        leaves: Sequence[Tensor] | None = None,
        *,
        reached: Iterable[Tensor] | None,
        way_out: str = "pass it through args=(...), or use gradient='backprop'",
    ) -> None:
        self._mode, self._way_out = mode, way_out
        self._all = [*parameters, *args]
        self.args = [leaf(arg) for arg in args] if leaves is None else list(leaves)
        self.wanted = [target for target in (*parameters, *self.args) if target.requires_grad]
        self.totals = [torch.zeros_like(target) for target in self.wanted]
        # What a graph may end in, as the nodes that it does end in: those of parameters that were frozen when the solve
        # was made, and get no gradient, too.
        module = list(problem.f.parameters()) if isinstance(problem.f, nn.Module) else []
        self._known = {*_ends(self.wanted), *_ends(module)}
        # Leaves of other kinds, and the times when they were met; whether they are from outside shows in the end.
        self._strange: list[tuple[TensorWeakRef, Tensor]] = []
        self._checks, self._checked = reached is not None, False
        self._missing = set(_ends(reached or ()))

    def check(self, results: Sequence[Tensor], t: Tensor, own: Sequence[Tensor]) -> None:
        """See what the graph of what was made of f near t ends in, its ``own`` leaves aside; ``gradients`` raises for
        what would be lost."""
        if not self._checks:
            return
        known, seen = self._known, set()
        todo = [_end(result) for result in results if result.requires_grad]
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in known:
                continue
            todo += [parent for parent, _ in node.next_functions if parent is not None]
            variable = getattr(node, "variable", None)
            if variable is not None and not any(variable is tensor for tensor in own):
                self._strange.append((TensorWeakRef(variable), t))
        self._checked = True
        if self._missing:
            self._missing -= seen

    def pull(self, graph: EvaluationGraph, t: Tensor, gradient: Tensor, retain: bool = False) -> Tensor:
        """(df/dy)^T gradient [N] of one evaluation at t; (df/dtheta)^T gradient is added to the totals."""
        self.check(graph.outputs, t, graph.leaves)
        pulled = self.pull_all(graph.leaves, graph.outputs, graph.grad_outputs(gradient), retain)
        return flatten(pulled, gradient.dtype)

    def pull_all(
        self, state: Sequence[Tensor], results: Sequence[Tensor], gradients: Sequence[Tensor], retain: bool = False
    ) -> Sequence[Tensor]:
        """The same for any results of the tensors of a state and of the targets."""
        graphs = [(r, g) for r, g in zip(results, gradients, strict=True) if r.requires_grad]
        if not graphs:
            return list(map(torch.zeros_like, state))
        # One call for the state's and the targets' gradients: two would walk the same chain twice.
        inputs = [*state, *self.wanted]
        found = torch.autograd.grad(
            [r for r, _ in graphs], inputs, [g for _, g in graphs], retain_graph=retain, allow_unused=True
        )
        parts = found[len(state) :]
        pairs = [(total, part) for total, part in zip(self.totals, parts, strict=True) if part is not None]
        if pairs:
            torch._foreach_add_(*map(list, zip(*pairs, strict=True)))
        return [torch.zeros_like(x) if part is None else part for x, part in zip(state, found, strict=False)]

    def gradients(self) -> list[Tensor | None]:
        """The totals in the order of all parameters and arguments, None where none is wanted.

        Raises ValueError where f has used other tensors that want a gradient, and where no evaluation has used a
        parameter that the first one of the solve did.
        """
        for ref, t in self._strange:
            if ref() is not None:
                raise ValueError(
                    f"gradient={self._mode!r}: f uses a tensor at t={t.item():.6g} that it does not use at the first "
                    f"time, and whose gradient would be lost; make it a parameter of an nn.Module f, {self._way_out}"
                )
        if self._checked and self._missing:
            raise ValueError(
                f"gradient={self._mode!r}: f no longer uses a parameter that it used in the solve, as where the solve "
                f"ran inside torch.func.functional_call, and the parameter would get no gradient; {self._way_out}"
            )
        totals = iter(self.totals)
        return [next(totals) if target.requires_grad else None for target in self._all]


def _end(tensor: Tensor) -> Any:
    """The node of autograd's graph that made a tensor; of a leaf, the one that takes its gradient."""
    return tensor.grad_fn or get_gradient_edge(tensor).node


def _ends(tensors: Iterable[Tensor]) -> list[Any]:
    return [_end(tensor) for tensor in tensors if tensor.requires_grad]
