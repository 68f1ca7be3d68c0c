"""What a vector field takes from its surroundings: found in the graph of one evaluation, or refused, never lost."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odebench.ode.problem import Graph, Problem, flat


@dataclass(frozen=True)
class FirstEvaluation:
    """f = f(t, y, args) at the first time with its graph: y [N] and args are its leaves, and so are ``parameters``."""

    t: Tensor
    y: Tensor
    args: list[Tensor]
    f: Tensor
    parameters: list[Tensor]


def first_evaluation(problem: Problem, mode: str) -> FirstEvaluation:
    """f(t0, y0) and every leaf that f reaches and that wants a gradient.

    The graph of this one evaluation shows what f takes from its surroundings, parameters in closures included, so
    that none gets a silent zero. A tensor that was computed outside f cannot be reached again by a
    hand-written backward pass and is refused, in the name of the gradient ``mode``.
    """
    y, args = problem.y0.detach().requires_grad_(), [leaf(arg) for arg in problem.args]
    (t,) = problem.clock(problem.times[:1])
    with torch.enable_grad():
        # Autograd numbers its nodes in the order they are made: a smaller number was made before f ran.
        fence = (torch.zeros((), requires_grad=True) * 1).grad_fn
        assert fence is not None
        problem.stats.nfe += 1
        f = problem.rate(t, y, args)
    reached = leaves([f], mode, fence._sequence_nr())
    own = set(map(id, (y, *args)))
    found = dict.fromkeys(problem.f.parameters()) if isinstance(problem.f, nn.Module) else {}
    parameters = [p for p in (found | reached) if p.requires_grad and id(p) not in own]
    if any(p._backward_hooks for p in parameters):
        raise ValueError(
            f"gradient={mode!r}: a parameter of f has a gradient hook, which would run at every evaluation of the "
            "backward pass; use gradient='backprop', or change the gradient after backward()"
        )
    return FirstEvaluation(t, y, args, f, parameters)


def leaves(results: Sequence[Tensor], mode: str, fence: int = 0) -> dict[Tensor, None]:
    """The leaf tensors that want a gradient in the graph of what f gave, in order.

    Raises ValueError for a node that was made before the one numbered ``fence``: it is outside of f.
    """
    found: dict[Tensor, None] = dict.fromkeys(r for r in results if r.grad_fn is None and r.requires_grad)
    seen, todo = set(), [result.grad_fn for result in results]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[variable] = None
        elif node._sequence_nr() < fence:
            raise ValueError(
                f"gradient={mode!r}: f uses a tensor that was computed outside of it (by {node.name()}) and wants a "
                "gradient; pass it through args=(...), or use gradient='backprop'"
            )
        todo += [parent for parent, _ in node.next_functions]
    return found


def leaf(tensor: Tensor) -> Tensor:
    """The same numbers without their graph, wanting a gradient where the tensor does."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


class Targets:
    """Parameters and argument tensors of a backward pass, and their gradients so far.

    args: the argument tensors as f is to get them; leaves that stand for them may be given.
    wanted: what gets a gradient, parameters first; ``totals`` are their gradients.
    """

    def __init__(
        self,
        problem: Problem,
        mode: str,
        parameters: Sequence[Tensor],
        args: Sequence[Tensor],
        leaves: Sequence[Tensor] | None = None,
    ) -> None:
        self._mode = mode
        self._all = [*parameters, *args]
        self.args = [leaf(arg) for arg in args] if leaves is None else list(leaves)
        self.wanted = [target for target in (*parameters, *self.args) if target.requires_grad]
        self.totals = [torch.zeros_like(target) for target in self.wanted]
        # A module names its parameters; what else f uses at some times only is not known in advance.
        self._known = None if isinstance(problem.f, nn.Module) else {*parameters, *self.args}

    def check(self, results: Sequence[Tensor], t: Tensor, state: Sequence[Tensor]) -> None:
        """Raises ValueError where what was made of f near t and of the tensors of a state reaches a parameter that is
        not among the targets."""
        if self._known is not None and (leaves(results, self._mode).keys() - self._known - {*state}):
            raise ValueError(
                f"gradient={self._mode!r}: f uses a parameter at t={t.item():.6g} that it does not use at the first "
                "time; make f an nn.Module that holds it, pass it through args=(...), or use gradient='backprop'"
            )

    def pull(self, graph: Graph, t: Tensor, gradient: Tensor, retain: bool = False) -> Tensor:
        """(df/dy)^T gradient [N] of one evaluation at t; (df/dtheta)^T gradient is added to the totals."""
        self.check(graph.rates, t, graph.leaves)
        pulled = self.pull_all(graph.leaves, graph.rates, graph.gradients(gradient), retain)
        return flat(pulled, gradient.dtype)

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
        """The totals in the order of all parameters and arguments, None where none is wanted."""
        totals = iter(self.totals)
        return [next(totals) if target.requires_grad else None for target in self._all]
