"""Build the model and the solver that the settings choose."""

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
from odebench.config.schema.solver import NO_SOLVER, SolverSettings
from odebench.config.settings import Settings
from odebench.errors import Diverged, UsageError
from odebench.models import MODELS
from odebench.models.dynamics import RegularisationTerms, RegularisedSolve
from odebench.ode.arguments import times_as_tensor
from odebench.ode.noise import RANDOM, evaluate_watched, refuse_layers_in_training_mode
from odebench.ode.per_sample import unwrap_rows
from odebench.ode.plan import TooManyStepsError

# Two evaluations may differ by this fraction of the field's largest value: on GPUs, round-off varies.
_MAX_RELATIVE_ROUND_OFF = 1e-2


def build_model(settings: Settings, data_properties: Mapping[str, Any]) -> nn.Module:
    """Build the model that the settings choose. torch's random state determines its initial weights.

    data_properties: in_channels, num_classes, shape, ... The constructor gets those for which it has a parameter.
    """
    model = cast(Callable[..., nn.Module], lookup("model", settings.model.name, MODELS, settings.extensions))
    parameters = inspect.signature(model).parameters
    arguments = {name: value for name, value in data_properties.items() if name in parameters}
    return model(**arguments, **options_of(settings.model))


class ConfiguredSolver:
    """``ode.solve`` with the solver and the gradient mode of the settings.

    Call it as solve(f, y0, t, **options). Raises Diverged if the solve fails. With ``first_step="warm"``, a solve that
    records a graph starts with the step size that the first error estimate of the previous solve allowed. Checkpoints
    contain this ``warm_step``.

    differentiable: whether the solves are for training. dynamics: settings of the regularised dynamics, for training.
    """

    def __init__(
        self,
        solver: SolverSettings,
        gradient: Any,
        extensions: tuple[str, ...],
        differentiable: bool = True,
        dynamics: Any = None,
    ) -> None:
        method: Any = lookup("solver", solver.name, ode.METHODS, extensions)
        self._dynamics = RegularisationTerms(**options_of(dynamics)) if dynamics else RegularisationTerms()
        self._regularised = RegularisedSolve(self._dynamics) if self._dynamics.weights else None
        self._differentiable = differentiable
        self._warm, self._stop_at_times = solver.first_step == "warm", solver.stop_at_times
        self.warm_step: float | None = None
        self._checked_fields: weakref.WeakSet[Any] = weakref.WeakSet()
        options = options_of(solver) | {
            "method": dataclasses.replace(method, **solver.options) if solver.options else method,
            "gradient": ode.GRADIENTS[gradient.name](**options_of(gradient)),
            "rtol": solver.rtol or 0.0,
            "atol": solver.atol or 0.0,
            "first_step": None if self._warm else solver.first_step,
            "group": dist.group.WORLD if solver.sync_steps and differentiable and dist.is_initialized() else None,
        }
        for name in ("options", "sync_steps", "stop_at_times"):  # settings that are not arguments of ode.solve
            del options[name]
        # A setting that is null means the default of ode.solve.
        self._options = {name: value for name, value in options.items() if value is not None}

    def __call__(self, f: Callable[..., Any], y0: Any, t: Any, **options: Any) -> ode.Solution:
        """Solve an ODE; see ``odebench.ode.solve`` for the arguments.

        Raises UsageError if the field is not deterministic, or if there are more fixed steps than max_steps; Diverged
        if the solve fails.
        """
        # Each solve may pass a new function object, but its code object stays the same.
        checked = f if isinstance(f, nn.Module) else getattr(f, "__code__", type(f))
        if checked not in self._checked_fields:
            _check_is_deterministic(f, y0, times_as_tensor(t), options.get("args", ()))
            self._checked_fields.add(checked)
        all_options = self._options | options
        trains = self._differentiable and torch.is_grad_enabled()
        if trains and self._dynamics.steer:
            t = self._dynamics.with_random_end(t)
        if self._stop_at_times:
            all_options["step_t"] = t
        solve = self._regularised if self._regularised and trains else ode.solve
        warm = self._warm and torch.is_grad_enabled() and "first_step" not in options
        if warm:
            all_options["first_step"] = self.warm_step
        try:
            solution = solve(f, y0, t, **all_options)
        except ode.SolveError as error:
            self.pop_penalty()  # else the penalty of this training step's other solves would be added in the next one
            hint = "; a smaller optim.lr may help" if trains and error.outcome.status is ode.Status.non_finite else ""
            raise Diverged(f"{error}{hint}") from error
        except TooManyStepsError as error:  # not found earlier: only the model knows the time span
            line = f"solver.step_size={all_options['step_size']:g}: {error}"
            raise UsageError(line, "solver.step_size", "solver.max_steps") from error
        if warm:
            self.warm_step = solution.stats.warm_step
        return solution

    def pop_penalty(self) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the penalty of all solves since the last call, and its integrals by tag. Resets both.

        The penalty is None if no solve was regularised.
        """
        return self._regularised.pop_penalty() if self._regularised else (None, {})


@torch.no_grad()
def _check_is_deterministic(f: Callable[..., Any], y0: Any, t: Tensor, args: Any) -> None:
    """Raise UsageError if the field changes between two evaluations at the same point.

    Error control would treat this noise as an error and make the steps ever smaller. ``ode.solve`` finds only noise
    that torch draws, and raises ValueError.
    """

    def refuse(reason: str) -> None:
        raise UsageError(f"model: its vector field {reason}", "model")

    try:
        buffered = refuse_layers_in_training_mode(f)
    except ValueError as error:
        raise UsageError(f"model: {error}", "model") from error
    state = tree_leaves(y0)[0]
    start, args = t.select(-1, 0).to(state.device, state.real.dtype), unwrap_rows(args)
    first = tree_leaves(evaluate_watched(f, refuse, buffered, start, y0, *args))
    second = tree_leaves(f(start, y0, *args))
    for a, b in zip(first, second, strict=True):
        round_off = _MAX_RELATIVE_ROUND_OFF * float(a.abs().nan_to_num().max())
        if not torch.allclose(a, b, rtol=0.0, atol=round_off, equal_nan=True):
            refuse(RANDOM)


def build_solvers(settings: Settings) -> tuple[ConfiguredSolver | None, ConfiguredSolver | None]:
    """Build the solvers for training and for evaluation. Returns (None, None) if the model solves no ODE.

    Solves for evaluation are not compiled whole: there are few of them, of several sizes, and compiling takes longer.
    """
    if settings.solver.name == NO_SOLVER:
        return None, None
    gradient, extensions = settings.gradient, settings.extensions
    training = ConfiguredSolver(settings.solver, gradient, extensions, dynamics=settings.dynamics)
    evaluation = settings.evaluation_solver
    if evaluation.compile == "solve":
        evaluation = dataclasses.replace(evaluation, compile=False)
    return training, ConfiguredSolver(evaluation, gradient, extensions, False)
