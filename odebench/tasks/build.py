"""From settings to a model and to the solve it is called with."""

import dataclasses
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from odebench import ode
from odebench.config.choices import options_of
from odebench.config.plugins import lookup
from odebench.config.schema import SolverSettings
from odebench.config.settings import Settings
from odebench.errors import Diverged, UsageError
from odebench.models import MODELS
from odebench.models.dynamics import RegularisationTerms, RegularisedSolve
from odebench.ode.arguments import TooManyStepsError
from odebench.ode.per_sample import unwrap_rows
from odebench.ode.problem import refuse_layers_in_training_mode, times_as_tensor

# Of a field's largest rate: less is round-off, which on GPUs may differ from one evaluation to the next.
_MAX_RELATIVE_ROUND_OFF = 1e-2


def build_model(settings: Settings, data_properties: Mapping[str, Any]) -> nn.Module:
    """The model that the settings name, initialised from torch's random state.

    facts: what the data fixes (in_channels, num_classes, shape, ...); a constructor gets those that it names.
    """
    model = cast(Callable[..., nn.Module], lookup("MODELS", settings.model.name, MODELS, settings.extensions))
    named = inspect.signature(model).parameters
    return model(
        **{name: fact for name, fact in data_properties.items() if name in named}, **options_of(settings.model)
    )


class ConfiguredSolver:
    """The engine's ``solve`` with the solver and the gradient mode that the settings choose.

    Called as solve(f, y0, t, **more); raises Diverged where the solve fails. With ``first_step="warm"`` each solve with
    a graph starts with the step that the last one's first error would have allowed; ``warm_step`` is its size and part
    of a training's checkpoint.

    differentiable: the solves are for training. dynamics: the settings of its regularised dynamics: training solves
    add their terms to the loss; evaluations, which get them only where they are to be measured, carry the integrals.

    Raises UsageError for choices that the engine has no combination of.
    """

    def __init__(
        self,
        solver: SolverSettings,
        gradient: Any,
        extensions: tuple[str, ...],
        differentiable: bool = True,
        dynamics: Any = None,
    ) -> None:
        method: Any = lookup("METHODS", solver.name, ode.METHODS, extensions)
        self._dynamics = RegularisationTerms(**options_of(dynamics)) if dynamics else RegularisationTerms()
        self._regularised = RegularisedSolve(self._dynamics)
        self._differentiable = differentiable
        self._warm, self._stop_at_times = solver.first_step == "warm", solver.stop_at_times
        self.warm_step: float | None = None
        self._checked_fields: weakref.WeakSet[Any] = weakref.WeakSet()
        options = {
            "method": dataclasses.replace(method, **solver.options) if solver.options else method,
            "gradient": ode.GRADIENTS[gradient.name](**options_of(gradient)),
            "rtol": solver.rtol or 0.0,
            "atol": solver.atol or 0.0,
            "steps": solver.steps,
            "step_size": solver.step_size,
            "first_step": None if self._warm else solver.first_step,
            "min_step": solver.min_step,
            "max_step": solver.max_step,
            "max_steps": solver.max_steps,
            "controller": solver.controller,
            "stepping": solver.stepping,
            "compile": solver.compile,
            "group": dist.group.WORLD if solver.sync_steps and differentiable and dist.is_initialized() else None,
        }
        # null is the engine's own default.
        self._options: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        self._check_combination(solver.name, differentiable)

    def _check_combination(self, name: str, differentiable: bool) -> None:
        """UsageError where the engine has no such combination of choices, told before anything runs."""
        y0 = torch.ones(2, 1, requires_grad=differentiable)
        options = self._options | {"compile": False, "max_steps": 100_000, "group": None}
        with torch.set_grad_enabled(differentiable):
            try:
                ode.solve(lambda t, y: -y, y0, (0.0, 1e-3), **options, throw=False)
            except ValueError as error:
                raise UsageError(f"solver={name}: {error}") from error

    def __call__(self, f: Callable[..., Any], y0: Any, t: Any, **more: Any) -> ode.Solution:
        """See ``odebench.ode.solve``. Raises UsageError for a field that is another at every evaluation, and for fixed
        steps that are more than max_steps."""
        # A function may be new at every solve; its code is not.
        tried = f if isinstance(f, nn.Module) else getattr(f, "__code__", type(f))
        if tried not in self._checked_fields:
            _check_is_deterministic(f, y0, times_as_tensor(t), more.get("args", ()))
            self._checked_fields.add(tried)
        options = self._options | more
        trains = self._differentiable and torch.is_grad_enabled()
        if trains and self._dynamics.steer:
            t = self._dynamics.with_random_end(t)
        if self._stop_at_times:
            options["step_t"] = t
        measures = not self._differentiable
        solve = self._regularised if trains or measures else ode.solve
        warm = self._warm and torch.is_grad_enabled() and "first_step" not in more
        if warm:
            options["first_step"] = self.warm_step
        try:
            solution = solve(f, y0, t, **options)
        except ode.SolveError as error:
            self.pop_penalty()  # else that of this step's other solves would be part of the next one's
            hint = "; a smaller optim.lr may help" if trains and error.outcome.status is ode.Status.non_finite else ""
            raise Diverged(f"{error}{hint}") from error
        except TooManyStepsError as error:  # how long a solve is, the model says
            line = f"solver.step_size={options['step_size']:g}: {error}"
            raise UsageError(line, "solver.step_size", "solver.max_steps") from error
        if warm:
            self.warm_step = solution.stats.warm_step
        return solution

    def pop_penalty(self) -> tuple[Tensor | None, dict[str, Tensor]]:
        """What the dynamics of the solves since the last call add to the loss, None where nothing, and the values of
        their integrals by tag."""
        return self._regularised.pop_penalty()


@torch.no_grad()
def _check_is_deterministic(f: Callable[..., Any], y0: Any, t: Tensor, args: Any) -> None:
    """UsageError for a field that draws random numbers at the start of a solve, or gives another result when it is
    evaluated there again: all evaluations of a solve must be of one function, or error control sees the noise and
    takes ever smaller steps."""
    try:
        refuse_layers_in_training_mode(f)
    except ValueError as error:
        raise UsageError(f"model: {error}", "model") from error
    state = tree_leaves(y0)[0]
    start, before = t.select(-1, 0).to(state.device, state.real.dtype), _random_state(state.device)
    once, again = (tree_leaves(f(start, y0, *unwrap_rows(args))) for _ in range(2))
    differ = (not _nearly_equal(*pair) for pair in zip(once, again, strict=True))
    if not torch.equal(_random_state(state.device), before) or any(differ):
        raise UsageError(
            "model: its vector field draws noise and is another at every evaluation, and within a solve all must be of "
            "one; draw the noise once, before the solve, and hand it over as args=(noise,)",
            "model",
        )


def _random_state(device: torch.device) -> Tensor:
    """Of the host, and of the device."""
    host = torch.get_rng_state()
    return torch.cat((host, torch.cuda.get_rng_state(device))) if device.type == "cuda" else host


def _nearly_equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0.0, atol=_MAX_RELATIVE_ROUND_OFF * float(a.abs().max()), equal_nan=True)
