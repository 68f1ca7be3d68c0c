"""The settings of a run: types, ranges and cross-checks. The defaults stand in YAML under configs/.

``compose`` and ``override_saved`` (odebench/compose.py) give the composed YAML, ``read_settings`` turns it
into frozen dataclasses or raises a UsageError of one line. The rules of models and data are chosen by name;
a name of an extension is checked against the signature of its class or function instead.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from odebench.compose import (
    PLURALS,
    compose,
    config_folders,
    load_option,
    options,
    override_saved,
    refuse_resolvers,
    unknown_setting,
)
from odebench.errors import UsageError, unknown_name
from odebench.extensions import check_options, find, names
from odebench.ode.methods import METHODS, Tableau
from odebench.rules import (
    DATA,
    GRADIENTS,
    MLP,
    MODELS,
    NO_SOLVER,
    OPTIM,
    SCHEDULE,
    SGD,
    Adam,
    Adjoint,
    Checkpoint,
    Constant,
    Cosine,
    Exact,
    Extension,
    Images,
    ODENet,
    OneCycle,
    Positive,
    ResNet,
    Solver,
    Steps,
    Trainer,
)
from odebench.typed import Range, read_value, shown

__all__ = [
    "Settings",
    "Solver",
    "Trainer",
    "compose",
    "options_of",
    "override_saved",
    "read_settings",
    "run_name",
    "warnings",
]


@dataclass(frozen=True)
class Settings:
    """All settings of a run, read and checked: one field a group, and the top-level ones."""

    model: ODENet | ResNet | MLP | Extension
    solver: Solver
    gradient: Exact | Checkpoint | Adjoint
    data: Images | Extension
    optim: SGD | Adam
    schedule: OneCycle | Constant | Cosine | Steps
    trainer: Trainer
    task: Literal["classification"]
    tol: Positive
    eval_solver: str | None
    eval_tol: Positive | None
    seed: Annotated[int, Range(at_least=0, below=2**32)]
    device: str
    init_from: str | None
    extensions: tuple[str, ...]
    config_dir: str | None
    outputs: str
    run_dir: str | None
    budget: str
    budgets: dict[str, Any]

    @property
    def has_ode(self) -> bool:
        """Whether the model solves an ODE; an extension's does where a solver is chosen for it."""
        return getattr(self.model, "has_ode", self.solver.name != NO_SOLVER)

    @property
    def evaluation_solver(self) -> Solver:
        """The solver of validation and test: eval_solver's file at eval_tol, where these are set.

        A warm first step is left out: it is state of the training.
        """
        tol = self.tol if self.eval_tol is None else self.eval_tol
        if self.eval_solver is not None:
            option = load_option("solver", self.eval_solver, self.config_dir)
            whole = OmegaConf.create({"tol": tol, "solver": option})
            solver = _read_solver(_resolved(whole)["solver"], self.extensions)
        elif self.eval_tol is not None and not self.solver.fixed:
            solver = replace(self.solver, rtol=tol, atol=tol)
        else:
            solver = self.solver
        return replace(solver, first_step=None) if solver.first_step == "warm" else solver


def run_name(settings: Settings) -> str:
    """What a run's folder is called after its time, e.g. ``odenet_dopri5`` or ``resnet``."""
    solver = settings.solver.name
    return settings.model.name if solver == NO_SOLVER else f"{settings.model.name}_{solver}"


def options_of(choice: Any) -> dict[str, Any]:
    """The options of a model, data set, ... by key, without its name: what the built thing is called with."""
    if isinstance(choice, Extension):
        return dict(choice.options)
    return {field.name: getattr(choice, field.name) for field in fields(choice) if field.name != "name"}


def read_settings(config: DictConfig) -> Settings:
    """Types, ranges and cross-checks of a composed config; UsageError names the key and the way out."""
    refuse_resolvers(config)
    _check_budget(config)
    raw = _resolved(config)
    top = {key: value for key, value in raw.items() if key not in PLURALS or key == "experiment"}
    groups = {field.name for field in fields(Settings)} & set(PLURALS)
    plain = _read_fields(Settings, top, "", skip=groups)
    modules = plain["extensions"]
    for group in groups:
        if not isinstance(raw.get(group), dict):
            raise UsageError(f"{group} is missing; choose one, as in {group}=NAME (odebench list {PLURALS[group]})")
    settings = Settings(
        model=_read_named("model", raw["model"], MODELS, modules),
        solver=_read_solver(raw["solver"], modules),
        gradient=_read_named("gradient", raw["gradient"], GRADIENTS, ()),
        data=_read_named("data", raw["data"], DATA, modules),
        optim=_read_named("optim", raw["optim"], OPTIM, ()),
        schedule=_read_named("schedule", raw["schedule"], SCHEDULE, ()),
        trainer=_read(Trainer, raw["trainer"], "trainer."),
        **plain,
    )
    _check(settings)
    return settings


def _resolved(config: Any) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "settings"
        raise UsageError(f"{key}: {' '.join(str(error.args[0]).split())}") from error


def _read(rules: type, node: Mapping[str, Any], where: str) -> Any:
    return rules(**_read_fields(rules, node, where))


def _read_fields(rules: type, node: Mapping[str, Any], where: str, skip: Any = ()) -> dict[str, Any]:
    """The values of a mapping by a dataclass's annotations; keys must agree in both directions."""
    hints = get_type_hints(rules, include_extras=True)
    known = [field.name for field in fields(rules) if field.name not in skip]
    for key in node:
        if key not in known:
            raise unknown_setting(f"{where}{key}", [f"{where}{name}" for name in known])
    for key in known:
        if key not in node:
            raise UsageError(f"{where}{key} is missing; the file of that choice must name it")
    return {key: read_value(hints[key], f"{where}{key}", node[key]) for key in known}


def _read_named(group: str, node: Mapping[str, Any], own: Mapping[str, type], modules: Any) -> Any:
    """A choice by its name: our rules, or the signature of an extension's class or function."""
    name = node.get("name")
    if isinstance(name, str) and name in own:
        return _read(own[name], node, f"{group}.")
    kind = {"model": "MODELS", "data": "DATA"}.get(group, "")
    if not isinstance(name, str) or not modules:
        raise unknown_name(group, shown(name), own, PLURALS[group])
    target = find(kind, name, own, modules)
    given = {str(key): value for key, value in node.items() if key != "name"}
    check_options(kind, name, target, given, f"{group}.")
    return Extension(name, given)


def _read_solver(node: Mapping[str, Any], modules: Any) -> Solver:
    """A solver; the keys that only its method has become ``Solver.options``."""
    name = node.get("name")
    known = [*names("METHODS", METHODS, modules), NO_SOLVER]
    if name not in known:
        raise unknown_name("solver", shown(name), known, "solvers")
    method: Any = None if name == NO_SOLVER else find("METHODS", str(name), METHODS, modules)
    own = {key: node[key] for key in getattr(method, "options", ()) if key in node}
    hints = get_type_hints(type(method)) if own else {}
    options = {key: read_value(hints[key], f"solver.{key}", value) for key, value in own.items()}
    try:
        replace(method, **options) if options else None
    except ValueError as error:
        raise UsageError(f"solver={name}: {error}") from error
    return _read(Solver, {key: node[key] for key in node if key not in own} | {"options": options}, "solver.")


def _check_budget(config: DictConfig) -> None:
    """Before resolving, because an unknown budget breaks the interpolations of an experiment."""
    budget, budgets = config.get("budget"), config.get("budgets")
    if not budgets and budget != "full":
        raise UsageError(f"budget={budget}: budgets belong to experiments; choose one, as in experiment=NAME")
    if budgets and budget not in budgets:
        raise unknown_name("budget", budget, map(str, budgets), "budgets")


def _check(s: Settings) -> None:
    """What several settings say together, and what needs more than a type."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", s.device):
        raise UsageError(f"device={s.device}: must be auto, cpu, cuda or cuda:N, such as cuda:0")
    config_folders(s.config_dir)
    _check_names(s)
    _check_ode(s)
    if s.has_ode:
        _check_solver(s.solver, s.extensions)
        _check_gradient(s)
        if s.eval_solver is not None:
            _check_solver(s.evaluation_solver, s.extensions)
    if isinstance(s.model, ODENet | ResNet) and s.model.width % s.model.groups:
        raise UsageError(
            f"model.width={s.model.width}: must be a multiple of model.groups={s.model.groups}; change either"
        )
    _check_training(s)


def _check_names(s: Settings) -> None:
    if s.eval_solver is not None and s.eval_solver not in (files := options("solver", s.config_dir)):
        raise unknown_name("eval_solver", s.eval_solver, files, "solvers")


def _check_ode(s: Settings) -> None:
    """A solver and a gradient mode belong to models with an ODE, and only to them."""
    name, with_ode = (
        s.model.name,
        ", ".join(n for n, rules in MODELS.items() if getattr(rules, "has_ode", False)),
    )
    if s.has_ode and s.solver.name == NO_SOLVER:
        raise UsageError(f"solver=none: {name} solves an ODE; choose a solver, such as solver=dopri5")
    if s.has_ode and s.eval_solver == NO_SOLVER:
        raise UsageError(f"eval_solver=none: {name} solves an ODE; choose a solver, or null for solver's")
    if not s.has_ode and s.solver.name != NO_SOLVER:
        raise UsageError(
            f"solver={s.solver.name}: {name} has no ODE; leave solver out, or choose a model with an ODE ({with_ode})"
        )
    if not s.has_ode and s.eval_solver not in (None, NO_SOLVER):
        raise UsageError(f"eval_solver={s.eval_solver}: {name} has no ODE; leave eval_solver out")
    if not s.has_ode and s.gradient.name != "backprop":
        raise UsageError(
            f"gradient={s.gradient.name}: {name} has no ODE, so its gradient is backprop; "
            f"leave gradient out, or choose a model with an ODE ({with_ode})"
        )


def _check_solver(solver: Solver, extensions: tuple[str, ...]) -> None:
    method: Any = find("METHODS", solver.name, METHODS, extensions)
    if solver.steps is not None and solver.step_size is not None:
        raise UsageError(
            f"solver.steps={solver.steps} and solver.step_size={solver.step_size}: "
            "give one of them; set the other to null"
        )
    if solver.steps is not None and solver.max_steps is not None and solver.steps > solver.max_steps:
        raise UsageError(f"solver.steps={solver.steps}: must be at most solver.max_steps={solver.max_steps}")
    if solver.compile and (not isinstance(method, Tableau) or solver.stepping == "per_sample"):
        raise UsageError(
            "solver.compile=true: only the shared steps of explicit Runge-Kutta methods compile; "
            "leave it out, or choose solver=dopri5 solver.stepping=shared"
        )
    if (solver.min_step or 0) > (solver.max_step or math.inf):
        raise UsageError(f"solver.min_step={solver.min_step}: must be at most solver.max_step={solver.max_step}")
    if solver.fixed:
        return
    if not method.adaptive:
        raise UsageError(
            f"solver.steps=null: {solver.name} has no step size control; "
            "give solver.steps (20 is the default) or solver.step_size"
        )
    if solver.rtol is None and solver.atol is None:
        raise UsageError(
            "solver.rtol=null and solver.atol=null: adaptive steps need a tolerance; set either, or give solver.steps"
        )


def _check_gradient(s: Settings) -> None:
    """What a gradient mode asks of the solver; the engine refuses the rest when the task is built."""
    method: Any = find("METHODS", s.solver.name, METHODS, s.extensions)
    if s.gradient.name == "reversible" and not method.reversible:
        raise UsageError(
            f"gradient=reversible: the steps of {s.solver.name} cannot be undone; "
            "choose solver=alf, reversible_heun or reversible_dopri5, or gradient=checkpoint"
        )
    recomputes = isinstance(s.gradient, Checkpoint) and (s.gradient.checkpoints or s.gradient.recompute == "stage")
    if recomputes and s.gradient.keep == "graphs":  # type: ignore[union-attr]
        raise UsageError("gradient.keep=graphs: nothing is recomputed; leave checkpoints and recompute out")
    if isinstance(s.gradient, Adjoint) and s.gradient.method is not None:
        known = names("METHODS", METHODS, s.extensions)
        if s.gradient.method not in known:
            raise unknown_name("gradient.method", s.gradient.method, known, "solvers")


def _check_training(s: Settings) -> None:
    schedule, epochs = s.schedule, s.trainer.epochs
    if isinstance(schedule, Steps) and any(
        b <= a for a, b in zip(schedule.milestones, schedule.milestones[1:], strict=False)
    ):
        raise UsageError(f"schedule.milestones={shown(schedule.milestones)}: must increase")
    warmup = getattr(schedule, "warmup_epochs", 0)
    if warmup > epochs:
        raise UsageError(f"schedule.warmup_epochs={warmup}: must be at most trainer.epochs={epochs}")
    if isinstance(s.optim, SGD) and s.optim.nesterov and s.optim.momentum == 0:
        raise UsageError("optim.nesterov=true: needs a momentum; set optim.momentum, such as optim.momentum=0.9")
    limit = getattr(s.data, "train_limit", None)
    if limit is not None and limit < s.trainer.batch_size:
        raise UsageError(
            f"data.train_limit={limit}: must be at least trainer.batch_size={s.trainer.batch_size}, "
            "or no batch is whole"
        )


def warnings(settings: Settings) -> list[str]:
    """What is allowed but unlikely to be meant; one line each, for the log."""
    found = []
    tols = [t for t in (settings.solver.rtol, settings.solver.atol) if t is not None]
    adaptive = settings.has_ode and not settings.solver.fixed
    if settings.trainer.precision == "bf16" and adaptive and min(tols) < 1e-3:
        found.append(
            f"trainer.precision=bf16 with a tolerance of {min(tols):g}: below 1e-3 the rounding of bf16 "
            "costs many more evaluations; use tol=1e-3 or float32"
        )
    if settings.eval_tol is not None and settings.has_ode and settings.evaluation_solver.fixed:
        found.append(f"eval_tol={settings.eval_tol:g} has no effect: {settings.evaluation_solver.name} has fixed steps")
    return found
