"""Tensors that a vector field captures from its surroundings: each gets its gradient, or an error is raised.

The leaves of the graph of one evaluation are the captured tensors, and tensors that f creates itself, for example to
differentiate with respect to them. Tensors created inside f are freed with the graph; captured tensors survive.
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

from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.integrate import IntegrationResult
from odebench.ode.problem import EvaluationGraph, InitialValueProblem, flatten

HINT = "pass it through args=(...), or use gradient='backprop'"


@dataclass(frozen=True)
class CapturedTensors:
    """The tensors that get gradients besides y0 and args.

    parameters: the parameters of f, if it is a module, and the captured tensors; only those that require a gradient.
    captured: the tensors other than y and args that f uses at the first time and that require a gradient; None if the
        user named the parameters.
    f: f(t, y, args) [N] at the first time, if it was evaluated to find these tensors.
    """

    parameters: list[Tensor]
    captured: list[Tensor] | None
    f: Tensor | None


@dataclass(frozen=True)
class FirstEvaluation(CapturedTensors):
    """The value f(t, y, args) at the first time, for y [N], and the tensors that it was computed from.

    f: has a graph if the caller asked for it.
    """

    f: Tensor
    t: Tensor
    y: Tensor
    args: list[Tensor]


def first_evaluation(problem: InitialValueProblem, mode: str, with_graph: bool = False) -> FirstEvaluation:
    """Evaluate f(t0, y0), and find every leaf that it uses and that requires a gradient.

    The graph of this one evaluation shows what f captures, including parameters in closures. Without it, their
    gradients would be zero and nobody would notice.

    mode: the name of the gradient mode, for messages.
    with_graph: whether the value keeps its graph.

    If nothing requires a gradient, f is checked at every later evaluation; see ``check_without_backward``.

    Raises ValueError if a captured tensor was computed outside f, because a hand-written backward pass cannot continue
    into the graph of that tensor. Raises ValueError if a parameter has a gradient hook.
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
    """Run a solve inside an autograd function, which computes the gradient of the solve.

    function: the autograd function. It takes (solve, captured, *options, results, y0, *parameters, *args), appends the
        result of the solve to ``results`` and returns the states.
    """
    results: list[IntegrationResult] = []
    problem = solve.problem
    states = function.apply(solve, captured, *options, results, problem.y0, *captured.parameters, *problem.args)
    return dataclasses.replace(results[0], states=states)


def evaluate_first(problem: InitialValueProblem, y: Tensor, args: list[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Return the first time, f at that time with its graph, and a number of autograd's nodes.

    Nodes with a smaller number were created before f ran.
    """
    (t,) = problem.time_tensors(problem.times[:1])
    with torch.enable_grad():
        # Autograd numbers nodes in the order of their creation: a node with a smaller number is older than f's graph.
        marker = (torch.zeros((), requires_grad=True) * 1).grad_fn
        assert marker is not None
        problem.stats.nfe += 1
        f = problem.evaluate(t, y, args)
    return t, f, marker._sequence_nr()


def check_without_backward(
    problem: InitialValueProblem, parameters: Iterable[Tensor], mode: str, hint: str = HINT
) -> None:
    """If nothing requires a gradient at the first time, make f raise ValueError for tensors that require one later.

    In this case autograd runs no backward pass, which would otherwise find such tensors.
    """
    if not any(x.requires_grad for x in (problem.y0, problem.t, *problem.args, *parameters)):
        problem.f = _CheckedField(problem.f, mode, hint)


@dataclass(frozen=True)
class _CheckedField:
    """A wrapper of ``func`` that raises ValueError if ``func`` uses a captured tensor that requires a gradient.

    Two wrappers of one function compare equal, so that the compiled step of the function is found again.
    """

    func: Callable[..., Any]
    mode: str
    hint: str

    def __call__(self, t: Tensor, y: Any, *args: Any) -> Any:
        if torch.is_grad_enabled():  # the solver computes a Jacobian: the leaves of the graph are its own
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
    """Return the leaf tensors in the graph of a result of f, each once.

    first_nr: the number from ``evaluate_first``. Raises ValueError for a node with a smaller number, which was created
        before f ran.
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
    """Return those tensors that still exist now that the graph is freed."""
    return [tensor for ref in found if (tensor := ref()) is not None]


def detached_leaf(tensor: Tensor) -> Tensor:
    """Return the tensor without its graph; the result requires a gradient if the tensor does."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


class GradientAccumulator:
    """Sum the gradients of parameters and argument tensors over a hand-written backward pass.

    args: the argument tensors that f gets: the given ``leaves``, or else new leaves.
    captured: the tensors that f used at the first time; with None, nothing is checked.
    hint: for messages, what to do about a tensor that would get no gradient.
    tensors: the parameters and then the arguments, only those that require a gradient.
    totals: the gradients of ``tensors`` so far.
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
        # Nodes that a graph may end in. Parameters that were frozen at the solve are among them, but get no gradient.
        module = list(problem.f.parameters()) if isinstance(problem.f, nn.Module) else []
        self._known_nodes = {*_graph_nodes(self.tensors), *_graph_nodes(module)}
        # Other leaves, and the times of their first use. A leaf that survives the graphs was captured by f.
        self._unknown_leaves: list[tuple[TensorWeakRef, Tensor]] = []
        self._checks, self._checked = captured is not None, False
        self._unused_nodes = set(_graph_nodes(captured or ()))

    def note_leaves(self, results: Sequence[Tensor], t: Tensor, own: Sequence[Tensor]) -> None:
        """Record the leaves in the graphs of ``results``, except those in ``own``.

        results: tensors computed from evaluations of f near t.

        ``gradients`` later raises an error for each recorded leaf whose gradient would be lost.
        """
        if not self._checks:
            return
        seen = self.note_unknown_leaves(results, t, own)
        self._checked = True
        if self._unused_nodes:
            self._unused_nodes -= seen

    def note_unknown_leaves(self, results: Sequence[Tensor], t: Tensor, own: Sequence[Tensor] = ()) -> set[Any]:
        """Record the leaves as ``note_leaves`` does; return all nodes in the graphs of the results.

        Unused parameters are not checked here, so that the results may be computed from detached parameters.
        """
        known, seen = self._known_nodes, set()
        todo = [_graph_node(result) for result in results if result.requires_grad]
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in known:
                continue
            if parents := node.next_functions:
                todo += [parent for parent, _ in parents if parent is not None]
                continue
            variable = getattr(node, "variable", None)
            if variable is not None and not any(variable is tensor for tensor in own):
                self._unknown_leaves.append((TensorWeakRef(variable), t))
        return seen

    def vjp(self, graph: EvaluationGraph, t: Tensor, gradient: Tensor, retain: bool = False) -> Tensor:
        """Return (df/dy)^T gradient [N] for one evaluation at t, and add (df/dtheta)^T gradient to the totals."""
        self.note_leaves(graph.outputs, t, graph.leaves)
        gradients = self.vjp_of(graph.leaves, graph.outputs, graph.grad_outputs(gradient), retain)
        return flatten(gradients, gradient.dtype)

    def vjp_of(
        self, state: Sequence[Tensor], results: Sequence[Tensor], gradients: Sequence[Tensor], retain: bool = False
    ) -> Sequence[Tensor]:
        """Do what ``vjp`` does, for any results computed from the tensors of a state, parameters and arguments."""
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
        """Return the gradients of all parameters and then all arguments; None for those that require no gradient.

        Raises ValueError if f has used another tensor that requires a gradient. Raises ValueError if the first
        evaluation of the solve used a parameter that no evaluation of the backward pass has used.
        """
        for ref, t in self._unknown_leaves:
            if ref() is not None:
                raise _lost_gradient(self._mode, t, self._hint)
        if self._checked and self._unused_nodes:
            raise ValueError(
                f"gradient={self._mode!r}: f used a parameter in the solve but no longer uses it, so that it would get "
                f"no gradient (one cause: the solve ran inside torch.func.functional_call); {self._hint}"
            )
        totals = iter(self.totals)
        return [next(totals) if target.requires_grad else None for target in self._targets]


def _graph_node(tensor: Tensor) -> Any:
    """Return the node of autograd's graph that created a tensor; for a leaf, the node that accumulates its gradient."""
    return tensor.grad_fn or get_gradient_edge(tensor).node


def _graph_nodes(tensors: Iterable[Tensor]) -> list[Any]:
    return [_graph_node(tensor) for tensor in tensors if tensor.requires_grad]
