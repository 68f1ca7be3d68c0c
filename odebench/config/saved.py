"""Fill in keys that runs of earlier versions lack with today's defaults."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from odebench.config.compose import compose, quoted
from odebench.config.files import options
from odebench.config.groups import PLURALS
from odebench.config.read import read_settings
from odebench.config.settings import Settings
from odebench.errors import UsageError

log = logging.getLogger(__name__)


def saved_settings(settings: DictConfig, path: Path) -> DictConfig:
    """The settings of the run in folder ``path``, unresolved, with today's defaults for keys that older runs lack.

    A missing key comes from the chosen option, a missing group from the model's default option. A warning lists them.
    """
    if OmegaConf.select(settings, "model.name") is None:  # a damaged file rather than an older one
        return settings
    completed = _plain(settings)
    if filled := _fill(completed, _defaults(completed)):
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


def _defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Today's defaults of the options chosen in ``settings``; leaves out groups whose option no longer exists."""
    # The user's folder may be gone; the settings already hold the values of its options.
    folder = settings.get("config_dir")
    folder = folder if folder and Path(folder).is_dir() else None
    model = settings["model"]["name"]
    is_known = model in options("model", folder)
    today = _plain(compose([f"model={quoted(model)}"] if is_known else [], folder))
    others = [group for group in PLURALS if group in today and group not in ("model", "trainer")]
    names = {group: (settings if group in settings else today)[group].get("name") for group in others}
    known = {group: name for group, name in names.items() if name in options(group, folder)}
    # Without the model, whose file also sets keys of other groups: they may be newer than the run.
    plain = _plain(compose([f"{group}={quoted(name)}" for group, name in known.items()], folder))
    today |= {group: plain[group] for group in (*known, "trainer")}
    gone = (names.keys() - known.keys()) | (set() if is_known else {"model", "task"})
    return {key: value for key, value in today.items() if key not in gone}


def _fill(settings: dict[str, Any], today: dict[str, Any]) -> dict[str, Any]:
    """Add missing keys in place; returns what was added, by dotted key or group."""
    filled: dict[str, Any] = {}
    for key, value in today.items():
        if key not in settings:
            settings[key] = value
            filled[key] = value.get("name", "default") if key in PLURALS else value
        elif key in PLURALS:
            missing = {inner: value[inner] for inner in value if inner not in settings[key]}
            settings[key] |= missing
            filled |= {f"{key}.{inner}": default for inner, default in missing.items()}
    return filled
