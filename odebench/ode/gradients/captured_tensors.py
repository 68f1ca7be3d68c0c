"""Tensors that a vector field captures from its surroundings: each gets its gradient, or an error is raised.

The leaves of the graph of one evaluation are the captured tensors and those that f creates itself, for example to
differentiate with respect to them. Tensors created inside f die with the graph; captured ones survive.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils import _pytree as pytree
from torch.utils.weak import TensorWeakRef

from odebench.ode.integrate import ForwardSolve, IntegrationResult
from odebench.ode.problem import EvaluationGraph, InitialValueProblem, flatten

HINT = "pass it through args=(...), or use gradient='backprop'"


@dataclass(frozen=True)
class CapturedTensors:
    """The tensors that get gradients besides y0 and args.

    parameters: those of a module f and the captured tensors, as far as they require a gradient.
    captured: the tensors other than y and args that f uses at the first time and that require a gradient; None if the
        user named the parameters.
    f: f(t, y, args) [N] at the first time, if it was evaluated to find them.
    """

    parameters: list[Tensor]
    captured: list[Tensor] | None
    f: Tensor | None


@dataclass(frozen=True)
class FirstEvaluation(CapturedTensors):
    """f(t, y, args) at the first time, y [N], with its graph if that was asked for."""

    f: Tensor
    t: Tensor
    y: Tensor
    args: list[Tensor]


def first_evaluation(problem: InitialValueProblem, mode: str, with_graph: bool = False) -> FirstEvaluation:
    """f(t0, y0) and every leaf that it uses and that requires a gradient.

    The graph of this one evaluation shows what f captures, parameters in closures included, so that no gradient is
    silently zero.

    mode: name of the gradient mode, for messages.

    Where nothing requires a gradient, f is checked at every later evaluation; see ``check_without_backward``.

    Raises ValueError for a captured tensor that was computed outside f: a hand-written backward pass cannot continue
    into its graph.
    """
    y, args = problem.y0.detach().requires_grad_(), [detached_leaf(arg) for arg in problem.args]
    t, f, first_nr = evaluate_first(problem, y, args)
    found = graph_leaves(f, mode, first_nr)
    f = f if with_graph else f.detach()
    own = set(map(id, (y, *args)))
    captured = [x for x in alive_tensors(found) if id(x) not in own]
    module = problem.f.parameters() if isinstance(problem.f, nn.Module) else ()
    parameters = [p for p in dict.fromkeys((*module, *captured)) if p.requires_grad]
    if any(p._backward_hooks for p in parameters):
        raise ValueError(
            f"gradient={mode!r}: a parameter of f has a gradient hook, which would run at every evaluation of the "
            "backward pass; use gradient='backprop', or change the gradient after backward()"
        )
    check_without_backward(problem, parameters, mode)
    return FirstEvaluation(parameters, captured, f, t, y, args)


def run_with_backward(
    function: Any, solve: ForwardSolve, captured: CapturedTensors, *options: Any
) -> IntegrationResult:
    """Run a solve inside an autograd function, which computes its gradient.

    function: takes (solve, captured, *options, results, y0, *parameters, *args), appends the result to ``results`` and
        returns its states.
    """
    results: list[IntegrationResult] = []
    problem = solve.problem
    states = function.apply(solve, captured, *options, results, problem.y0, *captured.parameters, *problem.args)
    return dataclasses.replace(results[0], states=states)


def evaluate_first(problem: InitialValueProblem, y: Tensor, args: list[Tensor]) -> tuple[Tensor, Tensor, int]:
    """The first time, f there with its graph, and the number of the oldest node of autograd that f may have created."""
    (t,) = problem.time_tensors(problem.times[:1])
    with torch.enable_grad():
        # Autograd numbers its nodes in the order of their creation: one with a smaller number is older than f's graph.
        marker = (torch.zeros((), requires_grad=True) * 1).grad_fn
        assert marker is not None
        problem.stats.nfe += 1
        f = problem.evaluate(t, y, args)
    return t, f, marker._sequence_nr()


def check_without_backward(
    problem: InitialValueProblem, parameters: Iterable[Tensor], mode: str, hint: str = HINT
) -> None:
    """Make f raise ValueError for tensors that require a gradient, if nothing requires one at the first time: autograd
    then runs no backward pass, which would find the tensors that f uses only later."""
    if not any(x.requires_grad for x in (problem.y0, problem.t, *problem.args, *parameters)):
        problem.f = _CheckedField(problem.f, mode, hint)


@dataclass(frozen=True)
class _CheckedField:
    """func, which raises ValueError if it uses a captured tensor that requires a gradient. Two wrappers of one func
    compare equal, so that its compiled step is found again."""

    func: Callable[..., Any]
    mode: str
    hint: str

    def __call__(self, t: Tensor, y: Any, *args: Any) -> Any:
        if torch.is_grad_enabled():  # a Jacobian is computed, whose graph has leaves of the solver
            return self.func(t, y, *args)
        with torch.enable_grad():
            rate = self.func(t, y, *args)
            results = [x for x in pytree.tree_leaves(rate) if isinstance(x, Tensor) and x.requires_grad]
        if results:
            found = [leaf for result in results for leaf in graph_leaves(result, self.mode)]
            rate = pytree.tree_map_only(Tensor, Tensor.detach, rate)
            del results
            if alive_tensors(found):
                raise _lost_gradient(self.mode, t, self.hint)
        return rate


def _lost_gradient(mode: str, t: Tensor, hint: str) -> ValueError:
    return ValueError(
        f"gradient={mode!r}: f uses a tensor at t={t.reshape(-1)[0].item():.6g} that it does not use at the first "
        f"time, and whose gradient would be lost; make it a parameter of an nn.Module f, {hint}"
    )


def graph_leaves(result: Tensor, mode: str, first_nr: int = 0) -> list[TensorWeakRef]:
    """The leaf tensors that require a gradient in the graph of f's result, each once.

    Raises ValueError for a node with a number below ``first_nr``: it was created before f ran.
    """
    found: list[TensorWeakRef] = []
    seen, todo = set(), _graph_nodes([result])
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.append(TensorWeakRef(variable))
        elif node._sequence_nr() < first_nr:
            raise ValueError(
                f"gradient={mode!r}: f uses a tensor that was computed outside of it (by {node.name()}) and requires a "
                "gradient; pass it through args=(...), or use gradient='backprop'"
            )
        todo += [parent for parent, _ in node.next_functions]
    return found


def alive_tensors(found: Iterable[TensorWeakRef]) -> list[Tensor]:
    """The tensors that still exist after their graph was freed."""
    return [tensor for ref in found if (tensor := ref()) is not None]


def detached_leaf(tensor: Tensor) -> Tensor:
    """The tensor without its graph; it requires a gradient if the tensor does."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


class GradientAccumulator:
    """Sums the gradients of parameters and argument tensors over a hand-written backward pass.

    args: the argument tensors as f gets them: new leaves, or those given as ``leaves``.
    captured: the tensors that f used at the first time; None skips all checks of what f uses.
    hint: what a message tells the user to do about a tensor that would get no gradient.
    tensors: those that require a gradient, parameters first; ``totals`` are their gradients so far.
    """

    def __init__(
        self,
        problem: InitialValueProblem,
        mode: str,
        parameters: Sequence[Tensor],
        args: Sequence[Tensor],
        leaves: Sequence[Tensor] | None = None,
        *,
        captured: Iterable[Tensor] | None,
        hint: str = HINT,
    ) -> None:
        self._mode, self._hint = mode, hint
        self._targets = [*parameters, *args]
        self.args = [detached_leaf(arg) for arg in args] if leaves is None else list(leaves)
        self.tensors = [x for x in (*parameters, *self.args) if x.requires_grad]
        self.totals = [torch.zeros_like(x) for x in self.tensors]
        # Nodes that a graph may end in: also those of parameters that were frozen at the solve, and get no gradient.
        module = list(problem.f.parameters()) if isinstance(problem.f, nn.Module) else []
        self._known_nodes = {*_graph_nodes(self.tensors), *_graph_nodes(module)}
        # Other leaves, and the times of their first use; those that survive the graphs were captured.
        self._unknown_leaves: list[tuple[TensorWeakRef, Tensor]] = []
        self._checks, self._checked = captured is not None, False
        self._unused_nodes = set(_graph_nodes(captured or ()))

    def note_leaves(self, results: Sequence[Tensor], t: Tensor, own: Sequence[Tensor]) -> None:
        """Record the leaves, other than ``own``, of results computed from f near t; ``gradients`` raises an error for
        those whose gradient would be lost."""
        if not self._checks:
            return
        seen = self.note_unknown_leaves(results, t, own)
        self._checked = True
        if self._unused_nodes:
            self._unused_nodes -= seen

    def note_unknown_leaves(self, results: Sequence[Tensor], t: Tensor, own: Sequence[Tensor] = ()) -> set[Any]:
        """``note_leaves`` for results of detached parameters and arguments; returns the nodes of their graphs."""
        known, seen = self._known_nodes, set()
        todo = [_graph_node(result) for result in results if result.requires_grad]
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
                self._unknown_leaves.append((TensorWeakRef(variable), t))
        return seen

    def vjp(self, graph: EvaluationGraph, t: Tensor, gradient: Tensor, retain: bool = False) -> Tensor:
        """(df/dy)^T gradient [N] of one evaluation at t; (df/dtheta)^T gradient is added to the totals."""
        self.note_leaves(graph.outputs, t, graph.leaves)
        gradients = self.vjp_of(graph.leaves, graph.outputs, graph.grad_outputs(gradient), retain)
        return flatten(gradients, gradient.dtype)

    def vjp_of(
        self, state: Sequence[Tensor], results: Sequence[Tensor], gradients: Sequence[Tensor], retain: bool = False
    ) -> Sequence[Tensor]:
        """``vjp`` of any results computed from the tensors of a state, the parameters and the arguments."""
        graphs = [(r, g) for r, g in zip(results, gradients, strict=True) if r.requires_grad]
        if not graphs:
            return list(map(torch.zeros_like, state))
        # One call for all gradients: two would traverse the same graph twice.
        inputs = [*state, *self.tensors]
        found = torch.autograd.grad(
            [r for r, _ in graphs], inputs, [g for _, g in graphs], retain_graph=retain, allow_unused=True
        )
        parts = found[len(state) :]
        pairs = [(total, part) for total, part in zip(self.totals, parts, strict=True) if part is not None]
        if pairs:
            torch._foreach_add_(*map(list, zip(*pairs, strict=True)))
        return [torch.zeros_like(x) if part is None else part for x, part in zip(state, found, strict=False)]

    def gradients(self) -> list[Tensor | None]:
        """The totals in the order of all parameters and arguments, None for those that require no gradient.

        Raises ValueError where f has used other tensors that require a gradient, and where no evaluation has used a
        parameter that the first one of the solve used.
        """
        for ref, t in self._unknown_leaves:
            if ref() is not None:
                raise _lost_gradient(self._mode, t, self._hint)
        if self._checked and self._unused_nodes:
            raise ValueError(
                f"gradient={self._mode!r}: f no longer uses a parameter that it used in the solve, as where the solve "
                f"ran inside torch.func.functional_call, and the parameter would get no gradient; {self._hint}"
            )
        totals = iter(self.totals)
        return [next(totals) if target.requires_grad else None for target in self._targets]


def _graph_node(tensor: Tensor) -> Any:
    """The node of autograd's graph that created a tensor; for a leaf, the one that accumulates its gradient."""
    return tensor.grad_fn or get_gradient_edge(tensor).node


def _graph_nodes(tensors: Iterable[Tensor]) -> list[Any]:
    return [_graph_node(tensor) for tensor in tensors if tensor.requires_grad]
