"""The settings of a run: types, ranges and cross-checks. The defaults stand in YAML under configs/.

``compose`` and ``override_saved`` (odebench/compose.py) give the composed YAML, ``read_settings`` turns it
into frozen dataclasses or raises a UsageError of one line; what several settings say together is checked in
odebench/checks.py. The rules of models and data are chosen by name;
a name of an extension is checked against the signature of its class or function instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from odebench.checks import check
from odebench.compose import (
    PLURALS,
    compose,
    load_option,
    options,
    override_saved,
    read_yaml,
    refuse_resolvers,
    unknown_setting,
)
from odebench.errors import UsageError, unknown_name
from odebench.extensions import check_options, find, names
from odebench.ode.methods import METHODS
from odebench.rules import (
    DATA,
    DYNAMICS,
    GRADIENTS,
    LOSSES,
    MODELS,
    NO_SOLVER,
    OPTIM,
    SCHEDULE,
    Choice,
    Dynamics,
    Extension,
    Solver,
    Trainer,
)
from odebench.rules.numbers import Positive
from odebench.typed import Range, read_value, shown

__all__ = [
    "Settings",
    "Solver",
    "Trainer",
    "compose",
    "options_of",
    "override_saved",
    "read_settings",
    "read_yaml",
    "refuse_resolvers",
    "run_name",
]


@dataclass(frozen=True)
class Settings:
    """All settings of a run, read and checked: one field a group, and the top-level ones."""

    model: Choice
    loss: Choice
    dynamics: Dynamics
    solver: Solver
    gradient: Choice
    data: Choice
    optim: Choice
    schedule: Choice
    trainer: Trainer
    task: str
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
    def has_ode_cell(self) -> bool:
        """Whether a recurrent cell of the model follows an ODE between observations: an ODE-RNN."""
        return hasattr(self.model, "encoder_solver") and getattr(self.model, "encoder", "ode_rnn") == "ode_rnn"

    @property
    def cell_solver(self) -> str | None:
        """The fixed-step method of an ODE-RNN's cell where that is the model's only ODE: it is then solved by this, and
        by backpropagation, whatever ``solver`` and ``gradient`` are. None otherwise."""
        is_only = self.has_ode_cell and not hasattr(self.model, "encoder")
        return getattr(self.model, "encoder_solver", None) if is_only else None

    @property
    def evaluation_solver(self) -> Solver:
        """The solver of validation and test: eval_solver's file at eval_tol, where these are set.

        A warm first step is left out: it is state of the training.
        """
        tol = self.tol if self.eval_tol is None else self.eval_tol
        if self.eval_solver is not None:
            option = load_option("solver", self.eval_solver, self.config_dir)
            whole = OmegaConf.create({"tol": tol, "solver": option})
            solver = _read_solver(_resolved(whole)["solver"], self.extensions, self.config_dir)
        elif self.eval_tol is not None and not self.solver.fixed:
            solver = replace(self.solver, rtol=tol, atol=tol)
        else:
            solver = self.solver
        return replace(solver, first_step=None) if solver.first_step == "warm" else solver


def run_name(settings: Settings) -> str:
    """What a run's folder is called after its time, e.g. ``odenet_dopri5`` or ``resnet``."""
    solver = settings.cell_solver or settings.solver.name
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
    modules, folder = plain["extensions"], plain["config_dir"]
    for group in groups:
        if not isinstance(raw.get(group), dict):
            line = f"{group} is missing; choose one, as in {group}=NAME (odebench list {PLURALS[group]})"
            raise UsageError(line, group)
    settings = Settings(
        model=_read_named("model", raw["model"], MODELS, modules, folder),
        loss=_read_named("loss", raw["loss"], LOSSES, ()),
        dynamics=_read_named("dynamics", raw["dynamics"], DYNAMICS, ()),
        solver=_read_solver(raw["solver"], modules, folder),
        gradient=_read_named("gradient", raw["gradient"], GRADIENTS, ()),
        data=_read_named("data", raw["data"], DATA, modules, folder),
        optim=_read_named("optim", raw["optim"], OPTIM, ()),
        schedule=_read_named("schedule", raw["schedule"], SCHEDULE, ()),
        trainer=_read(Trainer, raw["trainer"], "trainer."),
        **plain,
    )
    check(settings)
    return settings


def _resolved(config: Any) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "settings"
        raise UsageError(f"{key}: {' '.join(str(error.args[0]).split())}", key) from error


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
            raise UsageError(f"{where}{key} is missing; the file of that choice must name it", f"{where}{key}")
    return {key: read_value(hints[key], f"{where}{key}", node[key]) for key in known}


def _read_named(
    group: str, node: Mapping[str, Any], own: Mapping[str, type], modules: Any, config_dir: str | None = None
) -> Any:
    """A choice by its name: our rules, or the signature of an extension's class or function."""
    name = node.get("name")
    if isinstance(name, str) and name in own:
        return _read(own[name], node, f"{group}.")
    kind = {"model": "MODELS", "data": "DATA"}.get(group, "")
    known = names(kind, own, modules) if modules else [*own]
    if not isinstance(name, str) or name not in known:
        raise _unknown(group, name, known, modules, config_dir)
    target = find(kind, name, own, modules)
    given = {str(key): value for key, value in node.items() if key != "name"}
    check_options(kind, name, target, given, f"{group}.")
    return Extension(name, given)


def _unknown(group: str, name: Any, known: list[str], modules: Any, config_dir: str | None) -> UsageError:
    """A name without code; of an option of the user's, whose module is missing, with that way out."""
    if config_dir is None or name not in options(group, config_dir):
        return unknown_name(group, shown(name), known, PLURALS[group])
    line = f"its YAML file is found, but extensions={shown(modules)} holds no {group} of that name"
    return UsageError(f"{group}={name}: {line}; add its module, as in extensions=[my_module]", group, "extensions")


def _read_solver(node: Mapping[str, Any], modules: Any, config_dir: str | None) -> Solver:
    """A solver; the keys that only its method has become ``Solver.options``."""
    name = node.get("name")
    known = [*names("METHODS", METHODS, modules), NO_SOLVER]
    if name not in known:
        raise _unknown("solver", name, known, modules, config_dir)
    method: Any = None if name == NO_SOLVER else find("METHODS", str(name), METHODS, modules)
    own = {key: node[key] for key in getattr(method, "options", ()) if key in node}
    hints = get_type_hints(type(method)) if own else {}
    options = {key: read_value(hints[key], f"solver.{key}", value) for key, value in own.items()}
    try:
        replace(method, **options) if options else None
    except ValueError as error:
        raise UsageError(f"solver={name}: {error}", "solver", *(f"solver.{key}" for key in options)) from error
    return _read(Solver, {key: node[key] for key in node if key not in own} | {"options": options}, "solver.")


def _check_budget(config: DictConfig) -> None:
    """Before resolving, because an unknown budget breaks the interpolations of an experiment."""
    budget, budgets = config.get("budget"), config.get("budgets")
    if budgets is not None and not isinstance(budgets, DictConfig):
        raise UsageError(f"budgets={budgets}: a block is needed, as in full: {{epochs: 160}}", "budgets")
    if not budgets and budget != "full":
        raise UsageError(f"budget={budget}: budgets belong to experiments; choose one, as in experiment=NAME", "budget")
    if budgets and budget not in budgets:
        raise unknown_name("budget", budget, map(str, budgets), "budgets")
