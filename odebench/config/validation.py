"""Check settings against each other. Each error is one line that names the setting and the remedy."""

import math
import re
from dataclasses import replace
from operator import attrgetter
from typing import Any, cast

from odebench.config.files import config_folders, options
from odebench.config.parsing import as_written
from odebench.config.plugins import known_names, lookup
from odebench.config.schema import CHOICES
from odebench.config.schema.base import Choice
from odebench.config.schema.models import MODELS, ODENetSettings, ResNetSettings
from odebench.config.schema.quantities import QUANTITIES
from odebench.config.schema.solver import NO_SOLVER, SolverSettings
from odebench.config.schema.training import MultiStepSettings, SGDSettings
from odebench.config.settings import Settings
from odebench.errors import UsageError, did_you_mean, unknown_name
from odebench.ode.combinations import Combination, find_conflict
from odebench.ode.methods import METHODS, Method, Tableau

# Their fields compute vector-Jacobian products without automatic differentiation.
_MODELS_WITH_VJP = ("cnf", "ffjord")


def validate_settings(s: Settings) -> None:
    """Raise UsageError if the settings of a run do not fit together."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", s.device):
        raise UsageError(f"device={s.device}: must be auto, cpu, cuda or cuda:N, such as cuda:0", "device")
    _check_labels(s)
    config_folders(s.config_dir)
    if s.eval_solver is not None and s.eval_solver not in (files := options("solver", s.config_dir)):
        raise unknown_name("eval_solver", s.eval_solver, files, "solvers")
    _check_task(s)
    _check_ode(s)
    _check_dynamics(s)
    if s.has_ode:
        _check_combination(s, s.solver, training=True)
        _check_solver(s.solver)
        _check_encoder(s)
        _check_sync_steps(s)
        if s.eval_solver is not None:
            _check_combination(s, s.evaluation_solver, training=False)
            _check_solver(s.evaluation_solver)
    if isinstance(s.model, ODENetSettings | ResNetSettings) and s.model.width % s.model.groups:
        line = f"model.width={s.model.width}: must be a multiple of model.groups={s.model.groups}; change either"
        raise UsageError(line, "model.width", "model.groups")
    _check_training(s)


def _check_labels(s: Settings) -> None:
    """Check that the name is one line, and that `list runs` can filter by each tag."""
    if s.name is not None and not (s.name.strip() and s.name.isprintable()):
        raise UsageError(f"name={s.name!r}: one line of text is needed, such as name=baseline", "name")
    for tag in s.tags:
        if not re.fullmatch(r"[\w.:/+-]+", tag):
            line = "a tag is one word of letters, digits and _ . : / + -, such as tags=[baseline,lr_0.1]"
            raise UsageError(f"tags={as_written(s.tags)}: {tag!r} is no tag; {line}", "tags")


def _check_task(s: Settings) -> None:
    """Check that model, data, loss and objective are for the same task. A plugin's model or data fits any task."""
    if s.task not in QUANTITIES:
        raise unknown_name("task", s.task, QUANTITIES, "tasks")
    name = s.model.name
    if s.model.tasks and s.task not in s.model.tasks:
        line = f"task={s.task}: {name} is a model for task={s.model.tasks[0]}; leave task out"
        raise UsageError(line, "task", "model")
    for group in ("data", "loss"):
        chosen: Choice = getattr(s, group)
        if chosen.tasks and s.task not in chosen.tasks:
            fitting = ", ".join(option for option, kind in CHOICES[group].items() if s.task in kind.tasks)
            line = f"{group}={chosen.name}: model={name} is for task {s.task}; choose {group} from {fitting}"
            raise UsageError(line, group, "model")
    objectives = [f"val/{name}" for name in QUANTITIES[s.task]]
    if s.trainer.objective not in objectives:
        hint, known = did_you_mean(s.trainer.objective, objectives), ", ".join(objectives)
        line = f"trainer.objective={s.trainer.objective}: no such quantity{hint} (task {s.task} has {known})"
        raise UsageError(line, "trainer.objective")
    if s.trainer.precision == "bf16" and s.task != "classification":
        raise UsageError("trainer.precision=bf16: only classification supports it; leave it out", "trainer.precision")


def _check_ode(s: Settings) -> None:
    """Check that a model with an ODE has a solver, and that other models have solver=none and gradient=backprop."""
    name = s.model.name
    if s.has_ode:
        for setting, solver in {"solver": s.solver.name, "eval_solver": s.eval_solver}.items():
            if solver == NO_SOLVER:
                line = f"{setting}=none: {name} solves an ODE; choose a solver, such as {setting}=dopri5"
                raise UsageError(line, setting, "model")
        return
    other = f"or a model with an ODE ({', '.join(model for model, kind in MODELS.items() if kind.has_ode)})"
    if s.solver.name != NO_SOLVER:
        line = f"solver={s.solver.name}: {name} has no ODE; choose solver=none, {other}"
        raise UsageError(line, "solver", "model")
    if s.eval_solver not in (None, NO_SOLVER):
        raise UsageError(f"eval_solver={s.eval_solver}: {name} has no ODE; leave eval_solver out", "eval_solver")
    if s.gradient.name != "backprop":
        line = f"gradient={s.gradient.name}: {name} has no ODE; choose gradient=backprop, {other}"
        raise UsageError(line, "gradient", "model")


def _check_dynamics(s: Settings) -> None:
    """Check that each training step solves an ODE if its solution is to be regularised."""
    terms = ("kinetic", "jacobian", "taylor", "steer")
    weights = {f"dynamics.{term}": getattr(s.dynamics, term) for term in terms if getattr(s.dynamics, term)}
    wanted = ", ".join(f"{key}={weight:g}" for key, weight in weights.items())
    if weights and not s.has_ode:
        line = f"{wanted}: {s.model.name} solves no ODE; leave dynamics out, or choose a model with an ODE"
        raise UsageError(line, "dynamics", *weights)
    integrals = [key for key in weights if key != "dynamics.steer"]
    if integrals and s.has_ode_cell:
        line = (
            f"{wanted}: not possible with an ODE-RNN, which solves a separate ODE for each gap; leave dynamics out, or "
            "choose model=latent_ode with model.encoder=rnn or gru"
        )
        raise UsageError(line, "dynamics", *integrals)
    differentiates = weights.keys() & {"dynamics.taylor"}
    if s.model.name not in _MODELS_WITH_VJP:
        differentiates |= weights.keys() & {"dynamics.jacobian"}
    if differentiates and s.has_ode and s.solver.compile == "solve":
        setting = min(differentiates)
        line = (
            "solver.compile=solve: torch cannot compile the derivatives of the field for "
            f"{setting}={weights[setting]:g} inside a loop; leave either out"
        )
        raise UsageError(line, "solver.compile", setting)
    if weights and s.loss.name == "flow_matching":
        line = f"{wanted}: loss=flow_matching solves nothing in training; choose loss=maximum_likelihood"
        raise UsageError(line, "dynamics", *weights)


def _check_solver(solver: SolverSettings) -> None:
    if solver.steps is not None and solver.step_size is not None:
        line = f"solver.steps={solver.steps} and solver.step_size={solver.step_size}: set either to null"
        raise UsageError(line, "solver.steps", "solver.step_size")
    if solver.steps is not None and solver.max_steps is not None and solver.steps > solver.max_steps:
        line = f"solver.steps={solver.steps}: must be at most solver.max_steps={solver.max_steps}"
        raise UsageError(line, "solver.steps", "solver.max_steps")
    if (solver.min_step or 0) > (solver.max_step or math.inf):
        line = f"solver.min_step={solver.min_step}: must be at most solver.max_step={solver.max_step}"
        raise UsageError(line, "solver.min_step", "solver.max_step")
    if not solver.fixed and solver.rtol is None and solver.atol is None:
        line = "solver.rtol=null and solver.atol=null: adaptive steps need a tolerance; set either, or set solver.steps"
        raise UsageError(line, "solver.rtol", "solver.atol")


def _check_combination(s: Settings, solver: SolverSettings, training: bool) -> None:
    """Check that ``ode.solve`` supports this combination of method, gradient mode, stepping, ...

    training: whether the solves are differentiated; those for evaluation are not.
    """
    gradient = s.gradient
    adjoint_method = getattr(gradient, "method", None)
    if adjoint_method is not None and adjoint_method not in (known := known_names("solver", METHODS, s.extensions)):
        raise unknown_name("gradient.method", adjoint_method, known, "solvers")
    combination = Combination(
        method=_method(solver.name, s),
        gradient=gradient.name,
        differentiable=training,
        fixed=solver.fixed,
        stepping=solver.stepping,
        compile=solver.compile,
        compile_math=solver.compile_math,
        step_t=solver.stop_at_times,
        group=solver.sync_steps and training,
        adjoint_method=None if adjoint_method is None else _method(adjoint_method, s),
        adjoint_steps=getattr(gradient, "steps", None),
        **{name: getattr(gradient, name) for name in _GRADIENT_OPTIONS if hasattr(gradient, name)},
    )
    if conflict := find_conflict(combination):
        settings = [_SETTINGS[argument] for argument in conflict.arguments]
        blamed: Any = attrgetter(settings[0])(replace(s, solver=solver))
        line = conflict.message(_spell(conflict.arguments[0], getattr(blamed, "name", blamed)), _spell)
        raise UsageError(line, *settings)


def _method(name: str, s: Settings) -> Method:
    return cast(Method, lookup("solver", name, METHODS, s.extensions))


_GRADIENT_OPTIONS = ("checkpoints", "recompute", "keep", "norm")
# Argument of odebench.ode.solve -> the setting that gives it.
_SETTINGS = {
    "method": "solver",
    "gradient": "gradient",
    "group": "solver.sync_steps",
    "step_t": "solver.stop_at_times",
    "adjoint_method": "gradient.method",
    "adjoint_steps": "gradient.steps",
    **{name: f"solver.{name}" for name in ("steps", "step_size", "stepping", "compile", "compile_math")},
    **{name: f"gradient.{name}" for name in _GRADIENT_OPTIONS},
}


def _spell(argument: str, value: Any) -> str:
    """Format an argument and its value as the user writes them on the command line."""
    return f"{_SETTINGS[argument]}={as_written(value)}"


def _check_encoder(s: Settings) -> None:
    """Check that the solver for an encoder's ODE is an explicit Runge-Kutta method; it takes fixed steps."""
    name = getattr(s.model, "encoder_solver", None)
    if name is not None and name not in METHODS:
        raise unknown_name("model.encoder_solver", name, METHODS, "solvers")
    if name is not None and not isinstance(METHODS[name], Tableau):
        line = f"model.encoder_solver={name}: must be an explicit Runge-Kutta method, such as euler, rk4 or dopri5"
        raise UsageError(line, "model.encoder_solver")


def _check_sync_steps(s: Settings) -> None:
    """Check that several processes can take the same steps: none may have its own times or its own solves."""
    if not s.solver.sync_steps:
        return
    conflicts = {
        f"dynamics.steer={s.dynamics.steer:g}": s.dynamics.steer > 0,
        "model.encoder_solver=null": s.has_ode_cell and getattr(s.model, "encoder_solver", None) is None,
    }
    for setting, is_present in conflicts.items():
        if is_present:
            line = f"solver.sync_steps=true: {setting} gives each process its own steps; leave either out"
            raise UsageError(line, "solver.sync_steps", setting.partition("=")[0])


def _check_training(s: Settings) -> None:
    schedule, epochs = s.schedule, s.trainer.epochs
    if s.trainer.compile and s.task == "density":
        hint = "choose solver.compile=true, which compiles field and solver" if s.has_ode else "leave it out"
        raise UsageError(f"trainer.compile=true: has no effect on {s.model.name}; {hint}", "trainer.compile")
    if isinstance(schedule, MultiStepSettings) and any(
        b <= a for a, b in zip(schedule.milestones, schedule.milestones[1:], strict=False)
    ):
        line = f"schedule.milestones={as_written(schedule.milestones)}: must increase"
        raise UsageError(line, "schedule.milestones")
    warmup = getattr(schedule, "warmup_epochs", 0)
    if warmup > epochs and s.trainer.iterations is None:
        line = f"schedule.warmup_epochs={warmup}: must be at most trainer.epochs={epochs}"
        raise UsageError(line, "schedule.warmup_epochs", "trainer.epochs")
    if isinstance(s.optim, SGDSettings) and s.optim.nesterov and s.optim.momentum == 0:
        line = "optim.nesterov=true: needs a momentum; set optim.momentum, such as optim.momentum=0.9"
        raise UsageError(line, "optim.nesterov", "optim.momentum")
    limit = getattr(s.data, "train_limit", None)
    if limit is not None and limit < s.trainer.batch_size:
        line = f"data.train_limit={limit}: must be at least trainer.batch_size={s.trainer.batch_size}"
        raise UsageError(line, "data.train_limit", "trainer.batch_size")
