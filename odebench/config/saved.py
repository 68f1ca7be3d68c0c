"""Fill in keys that runs of earlier versions lack with today's defaults."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from odebench.config.compose import CONFIGS, load_option, options
from odebench.config.groups import PLURALS
from odebench.config.read import read_settings
from odebench.config.settings import Settings
from odebench.errors import UsageError

log = logging.getLogger(__name__)


def saved_settings(settings: DictConfig, path: Path) -> DictConfig:
    """The settings of the run in folder ``path``, unresolved, with today's defaults for keys that older runs lack.

    A missing key comes from the chosen option, a missing group from the model's default option. A warning lists them.
    """
    model = OmegaConf.select(settings, "model.name")
    if model is None:  # a damaged file rather than an older one
        return settings
    completed = _plain(settings)
    if filled := _fill(completed, model):
        defaults = ", ".join(f"{key}={'null' if value is None else value}" for key, value in filled.items())
        log.warning("%s was made before these settings existed; using %s", path, defaults)
    return OmegaConf.create(completed)


def read_saved(config: DictConfig, path: Path) -> Settings:
    """Read the settings of a run from file ``path``; UsageError names it: a newer version's file, or a damaged one."""
    try:
        return read_settings(config)
    except UsageError as error:
        raise UsageError(f"{path}: {error}", *error.settings) from None


def _plain(config: Any) -> Any:
    """Dicts and lists, with interpolations unresolved."""
    return OmegaConf.to_container(config, resolve=False)


def _fill(settings: dict[str, Any], model: str) -> dict[str, Any]:
    """Add missing keys in place; returns what was added, by dotted key or group."""
    # The user's folder may be gone; the settings already hold the values of its options.
    folder = settings.get("config_dir")
    folder = folder if folder and Path(folder).is_dir() else None
    train_yaml = _plain(OmegaConf.load(CONFIGS / "train.yaml"))
    filled: dict[str, Any] = {}

    def fill(node: Any, known: Any, where: str = "") -> None:
        for key, value in known.items():
            if key not in node:
                node[key] = value
                filled[f"{where}{key}"] = value

    default_options = _default_options(model, train_yaml, folder)
    for group in PLURALS.keys() - {"experiment"}:
        if group not in settings:
            filled[group] = default_options[group]
            settings[group] = _plain(load_option(group, default_options[group], folder))
        name = settings[group].get("name", "default" if group == "trainer" else None)
        if name in options(group, folder):
            option = _plain(load_option(group, name, folder))
            fill(settings[group], option.pop("model") if group == "model" else option, f"{group}.")
            if group == "model":
                fill(settings, {key: value for key, value in option.items() if key not in PLURALS})
    fill(settings, {key: value for key, value in train_yaml.items() if key not in ("defaults", "hydra")})
    return filled


def _default_options(model: str, train_yaml: dict[str, Any], folder: Path | str | None) -> dict[str, str]:
    """The option of each group that a model gets by default."""
    path = options("model", folder).get(model)
    of_model = _plain(OmegaConf.load(path)) if path else {}
    chosen: dict[str, str] = {}
    for entry in [*train_yaml["defaults"], *of_model.get("defaults", ())]:
        if isinstance(entry, dict):
            chosen |= {str(key).removeprefix("override /"): value for key, value in entry.items()}
    return chosen
