"""Turn a composed config into a Settings object. Errors are one line that names the setting and the remedy."""

from omegaconf import DictConfig

from odebench.config.choices import read_choice
from odebench.config.compose import refuse_resolvers, resolved
from odebench.config.groups import PLURALS
from odebench.config.parsing import read_fields
from odebench.config.settings import Settings
from odebench.config.validation import validate_settings
from odebench.errors import UsageError, unknown_name


def read_settings(config: DictConfig) -> Settings:
    """Check types, ranges and combinations of settings and return them. A UsageError names the key and the remedy."""
    refuse_resolvers(config)
    _check_budget(config)
    raw = resolved(config)
    top = {key: value for key, value in raw.items() if key not in PLURALS or key == "experiment"}
    groups = [group for group in PLURALS if group != "experiment"]
    plain = read_fields(Settings, top, "", skip=groups)
    for group in groups:
        if not isinstance(raw.get(group), dict):
            line = f"{group} is missing; choose one, as in {group}=NAME (odebench list {PLURALS[group]})"
            raise UsageError(line, group)
    modules, folder = plain["extensions"], plain["config_dir"]
    choices = {group: read_choice(group, raw[group], modules, folder) for group in groups}
    settings = Settings(**choices, **plain)
    validate_settings(settings)
    return settings


def _check_budget(config: DictConfig) -> None:
    """Check the budget. Called before resolving: interpolations of an experiment fail for an unknown budget."""
    budget, budgets = config.get("budget"), config.get("budgets")
    if budgets is not None and not isinstance(budgets, DictConfig):
        line = "each budget needs a name and a block of settings, such as 'full: {epochs: 160}'"
        raise UsageError(f"budgets={budgets}: {line}", "budgets")
    if not budgets and budget != "full":
        raise UsageError(f"budget={budget}: only experiments have budgets; choose one with experiment=NAME", "budget")
    if budgets and budget not in budgets:
        raise unknown_name("budget", budget, map(str, budgets), "budgets")
