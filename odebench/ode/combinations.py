"""Check which choices of a solve exclude each other. Imports no torch, so that the command line can use it."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from odebench.ode.methods import METHODS, Method, Tableau
from odebench.ode.methods.adams import VariableOrderAdams
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.scipy_methods import SciPyMethod

PER_SAMPLE_GRADIENTS = ("backprop", "checkpoint")
COMPILED_SOLVE_GRADIENTS = ("backprop", "checkpoint", "adjoint", "interpolated_adjoint")
_WORDS = {
    "event": "events",
    "dense": "dense output",
    "compile": "compiled step",
    "group": "group of processes",
}


class Combination(NamedTuple):
    """The choices of a solve that depend on each other, named like the arguments of ``odebench.ode.solve``.

    differentiable: whether the solution must have a gradient.
    fixed: whether the steps are fixed.
    compile: True or "step" if the step is compiled, "solve" if the whole loop is compiled, else False.
    compile_math: "exact" or "fast", for compiled solves.
    keep, recompute, checkpoints: the options of gradient="checkpoint".
    norm: the norm of the error in the adjoint's backward solve.
    adjoint_method, adjoint_steps: the method and the number of fixed steps of the adjoint's backward solve; None takes
        those of the forward solve.
    """

    method: Method
    gradient: str = "backprop"
    differentiable: bool = True
    fixed: bool = False
    stepping: str = "shared"
    compile: bool | str = False
    compile_math: str = "exact"
    event: bool = False
    dense: bool = False
    step_t: bool = False
    jump_t: bool = False
    group: bool = False
    checkpoints: int | None = None
    recompute: str = "step"
    keep: str = "states"
    norm: str = "semi"
    adjoint_method: Method | None = None
    adjoint_steps: int | None = None


class Conflict(NamedTuple):
    """Choices that exclude each other.

    arguments: the arguments with these choices. The message blames the first one.
    reason, remedy: why they exclude each other, and what to do. Choices in this text are written as argument=value.
    """

    arguments: tuple[str, ...]
    reason: str
    remedy: str

    def message(self, blamed: str, spell: Callable[[str, str], str]) -> str:
        """Return the error message, on one line.

        blamed: the first of the arguments, with its value, as the user writes it.
        spell: a function that takes an argument and its value, and returns them as the user writes them.
        """
        spelled = re.sub(r"\b(\w+)=([\w.]+)", lambda m: spell(m[1], m[2]), f"{self.reason}; {self.remedy}")
        return f"{blamed}: {spelled}"


def find_conflict(c: Combination) -> Conflict | None:
    """Return the first conflict in a combination; None if ``odebench.ode.solve`` supports it."""
    of_gradient = _OF_GRADIENT.get(c.gradient, lambda _: None)
    return _of_steps(c) or _of_compiled_solve(c) or _of_per_sample(c) or _of_scipy(c) or of_gradient(c) or _of_group(c)


def _of_steps(c: Combination) -> Conflict | None:
    name = c.method.name
    if not c.fixed and not c.method.adaptive:
        reason = f"{name} has no error estimate to choose its steps by"
        return Conflict(("steps", "step_size"), reason, "give steps=20 or step_size=0.05, say")
    if c.fixed and _chooses_its_steps(c.method):
        reason = f"{name} chooses its steps by their error"
        return Conflict(("steps", "step_size"), reason, "leave it out, or choose method=implicit_adams")
    if c.compile and not isinstance(c.method, Tableau):
        reason = f"only steps of explicit Runge-Kutta methods compile, not those of {name}"
        return Conflict(("compile", "method"), reason, "leave it out, or choose method=dopri5")
    if c.jump_t and isinstance(c.method, ImplicitTableau) and max(c.method.c) > 1:
        reason = f"a stage of {name} is later than the end of its step"
        return Conflict(("jump_t", "method"), reason, "choose method=radauIIA5 or method=kvaerno3")
    return None


def _of_compiled_solve(c: Combination) -> Conflict | None:
    if c.compile != "solve":
        if c.compile_math != "exact":
            reason = "only whole solves are compiled with other math"
            return Conflict(("compile_math", "compile"), reason, "leave it out, or choose compile=solve")
        return None
    if c.gradient not in COMPILED_SOLVE_GRADIENTS:
        remedy = f"choose gradient={' or gradient='.join(COMPILED_SOLVE_GRADIENTS)}, or leave compile out"
        return Conflict(("compile", "gradient"), f"a compiled solve has no gradient={c.gradient}", remedy)
    if c.stepping != "shared":
        reason = f"a compiled solve has no stepping={c.stepping}"
        return Conflict(("compile", "stepping"), reason, "choose stepping=shared, or leave compile out")
    if c.checkpoints is not None:
        reason = "a compiled solve stores every step"
        return Conflict(("compile", "checkpoints"), reason, "leave checkpoints out, or choose compile=step")
    for argument in ("event", "group"):
        if getattr(c, argument):
            reason = f"a compiled solve has no {_WORDS.get(argument, argument)}"
            return Conflict(("compile", argument), reason, "leave it out, or choose compile=step")
    backward = c.adjoint_method or c.method
    if "adjoint" in c.gradient and not isinstance(backward, Tableau):
        reason = f"only backward solves by explicit Runge-Kutta methods compile, not those by {backward.name}"
        return Conflict(("compile", "adjoint_method"), reason, "leave it out, or choose adjoint_method=dopri5")
    return None


def _chooses_its_steps(method: Method) -> bool:
    return isinstance(method, SciPyMethod | VariableOrderAdams)


def _of_per_sample(c: Combination) -> Conflict | None:
    if c.stepping != "per_sample":
        return None
    if not isinstance(c.method, Tableau):
        reason = f"{c.method.name} is no explicit Runge-Kutta method"
        return Conflict(("stepping", "method"), reason, "leave it out, or choose method=dopri5")
    for argument in ("compile", "dense", "step_t", "jump_t"):
        if getattr(c, argument):
            reason = f"stepping=per_sample has no {_WORDS.get(argument, argument)}"
            return Conflict((argument, "stepping"), reason, "leave it out, or choose stepping=shared")
    if c.gradient not in PER_SAMPLE_GRADIENTS:
        choices = " or ".join(f"gradient={mode}" for mode in PER_SAMPLE_GRADIENTS)
        return Conflict(("stepping", "gradient"), f"has no gradient={c.gradient}", f"choose {choices}, or leave it out")
    if c.gradient == "checkpoint" and (c.recompute, c.keep) != ("step", "states"):
        reason = "checkpoint then has neither recompute nor keep"
        return Conflict(("stepping", "recompute", "keep"), reason, "leave them out, or choose stepping=shared")
    if c.gradient == "checkpoint" and c.event:
        return Conflict(("stepping", "event"), "checkpoint then has no events", "choose gradient=backprop")
    return None


def _of_scipy(c: Combination) -> Conflict | None:
    if not isinstance(c.method, SciPyMethod):
        return None
    for argument in ("event", "dense", "step_t", "jump_t"):
        if getattr(c, argument):
            reason = f"SciPy's {c.method.name} has no {_WORDS.get(argument, argument)}"
            return Conflict((argument, "method"), reason, "leave it out, or choose method=dopri5")
    if c.gradient in ("checkpoint", "reversible") or (c.differentiable and c.gradient != "adjoint"):
        reason = f"autograd cannot differentiate through SciPy's {c.method.name}"
        remedy = "choose gradient=adjoint, or another method, such as method=adams"
        return Conflict(("gradient", "method"), reason, remedy)
    return None


def _of_adjoint(c: Combination) -> Conflict | None:
    backward, fixed = c.adjoint_method or c.method, c.fixed or c.adjoint_steps is not None
    if not (fixed or backward.adaptive):
        reason = f"{backward.name} has no error estimate to choose its steps by"
        return Conflict(("adjoint_method", "adjoint_steps"), reason, "give adjoint_steps=20, say")
    if fixed and _chooses_its_steps(backward):
        reason = f"the backward solve by {backward.name} chooses its steps by their error"
        return Conflict(("adjoint_steps", "adjoint_method"), reason, "choose adjoint_method=implicit_adams")
    return None


def _of_checkpoint(c: Combination) -> Conflict | None:
    name, explicit = c.method.name, isinstance(c.method, Tableau)
    if not explicit and not getattr(c.method, "one_step", False):
        reason = f"a step of {name} needs more than the state it starts from"
        return Conflict(("gradient", "method"), reason, "choose gradient=adjoint, gradient=backprop or method=dopri5")
    keeps_graphs, by_stage = c.keep == "graphs", c.recompute == "stage"
    if keeps_graphs and (c.checkpoints is not None or by_stage):
        reason = "nothing is recomputed"
        return Conflict(("keep", "checkpoints", "recompute"), reason, "leave checkpoints and recompute out")
    if keeps_graphs or by_stage:
        changed = "keep" if keeps_graphs else "recompute"
        if not explicit:
            reason = f"does not support {name}, which is implicit"
            return Conflict((changed, "method"), reason, "leave it out, or take method=dopri5")
        if c.compile:
            return Conflict((changed, "compile"), "a compiled step has no graphs of its own", "leave either out")
    if keeps_graphs and c.jump_t:
        return Conflict(("keep", "jump_t"), "has no jumps", "leave it out")
    if keeps_graphs and c.event and c.fixed:
        return Conflict(("keep", "event"), "has no events at fixed steps", "leave it out")
    return None


def _of_reversible(c: Combination) -> Conflict | None:
    if not c.method.reversible:
        reason = f"the steps of {c.method.name} cannot be undone"
        reversible = ", ".join(name for name, method in METHODS.items() if method.reversible)
        remedy = f"choose gradient=checkpoint, or a reversible method: {reversible}"
        return Conflict(("gradient", "method"), reason, remedy)
    for argument in ("event", "dense", "jump_t"):
        if getattr(c, argument):
            return Conflict(
                ("gradient", argument), f"has no {_WORDS.get(argument, argument)}", "choose gradient=backprop"
            )
    return None


def _of_group(c: Combination) -> Conflict | None:
    if not c.group:
        return None
    for argument, value in {"stepping": "per_sample", "norm": "full"}.items():
        if getattr(c, argument) == value:
            reason = f"{argument}={value} gives each process its own steps"
            return Conflict(("group", argument), reason, "leave either out")
    methods: dict[str, Any] = {"method": c.method, "adjoint_method": c.adjoint_method or c.method}
    for argument, method in methods.items():
        if not isinstance(method, Tableau):
            reason = f"{argument}={method.name} is no explicit Runge-Kutta method"
            return Conflict(("group", argument), reason, f"leave it out, or choose {argument}=dopri5")
    return None


_OF_GRADIENT = {
    "checkpoint": _of_checkpoint,
    "reversible": _of_reversible,
    "adjoint": _of_adjoint,
    "interpolated_adjoint": _of_adjoint,
}
