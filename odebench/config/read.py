"""From composed YAML to Settings, or a UsageError of one line that names the setting and the remedy."""

from dataclasses import fields

from omegaconf import DictConfig

from odebench.config.choices import read_choice, read_solver
from odebench.config.compose import refuse_resolvers, resolved
from odebench.config.groups import PLURALS
from odebench.config.parsing import read_dataclass, read_fields
from odebench.config.schema import DATA, DYNAMICS, GRADIENTS, LOSSES, MODELS, OPTIM, SCHEDULE, TrainerSettings
from odebench.config.settings import Settings
from odebench.config.validation import validate_settings
from odebench.errors import UsageError, unknown_name


def read_settings(config: DictConfig) -> Settings:
    """Types, ranges and cross-checks of a composed config; UsageError names the key and the remedy."""
    refuse_resolvers(config)
    _check_budget(config)
    raw = resolved(config)
    top = {key: value for key, value in raw.items() if key not in PLURALS or key == "experiment"}
    groups = {field.name for field in fields(Settings)} & set(PLURALS)
    plain = read_fields(Settings, top, "", skip=groups)
    modules, folder = plain["extensions"], plain["config_dir"]
    for group in groups:
        if not isinstance(raw.get(group), dict):
            line = f"{group} is missing; choose one, as in {group}=NAME (odebench list {PLURALS[group]})"
            raise UsageError(line, group)
    settings = Settings(
        model=read_choice("model", raw["model"], MODELS, modules, folder),
        loss=read_choice("loss", raw["loss"], LOSSES, ()),
        dynamics=read_choice("dynamics", raw["dynamics"], DYNAMICS, ()),
        solver=read_solver(raw["solver"], modules, folder),
        gradient=read_choice("gradient", raw["gradient"], GRADIENTS, ()),
        data=read_choice("data", raw["data"], DATA, modules, folder),
        optim=read_choice("optim", raw["optim"], OPTIM, ()),
        schedule=read_choice("schedule", raw["schedule"], SCHEDULE, ()),
        trainer=read_dataclass(TrainerSettings, raw["trainer"], "trainer."),
        **plain,
    )
    validate_settings(settings)
    return settings


def _check_budget(config: DictConfig) -> None:
    """Before resolving, because an unknown budget breaks the interpolations of an experiment."""
    budget, budgets = config.get("budget"), config.get("budgets")
    if budgets is not None and not isinstance(budgets, DictConfig):
        raise UsageError(f"budgets={budgets}: a block is needed, as in full: {{epochs: 160}}", "budgets")
    if not budgets and budget != "full":
        raise UsageError(f"budget={budget}: budgets belong to experiments; choose one, as in experiment=NAME", "budget")
    if budgets and budget not in budgets:
        raise unknown_name("budget", budget, map(str, budgets), "budgets")
