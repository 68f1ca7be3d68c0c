"""Read the settings of a saved run. Keys that an older run lacks get today's defaults."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from odebench.config.compose import compose, hint_for_label, parse_overrides, quoted
from odebench.config.files import known_keys, options
from odebench.config.groups import PLURALS
from odebench.config.read import read_settings
from odebench.config.settings import Settings
from odebench.errors import UsageError, unknown_setting

log = logging.getLogger(__name__)

# Settings that decide when a training ends, and all that may change when it resumes.
LENGTH_KEYS = ("trainer.epochs", "trainer.iterations", "trainer.max_minutes", "trainer.patience")
RESUMABLE_KEYS = (
    *LENGTH_KEYS,
    *("trainer.checkpoint_minutes", "trainer.keep_every", "trainer.figures", "trainer.profile"),
    *("name", "tags", "notes"),
)


def check_resumable(overrides: Sequence[str], config_dir: str | None, path: Path) -> dict[str, Any]:
    """Return the changes, key -> value, to the settings of the run in ``path`` that resumes.

    Raises UsageError for a setting that cannot change.
    """
    changes = {}
    for override in parse_overrides(overrides, config_dir):
        key = override.key_or_group
        if key not in RESUMABLE_KEYS:
            known = known_keys(config_dir)
            if key not in known:
                raise unknown_setting(key, known)
            line = f"cannot change when a run resumes ({', '.join(RESUMABLE_KEYS)} can); train another from its weights"
            raise UsageError(
                f"{override.input_line}: {line}: odebench train KEY=VALUE init_from={shlex.quote(str(path))}"
            )
        if override.is_sweep_override():
            raise UsageError(f"{override.input_line}: {hint_for_label(override) or 'give one value only'}", key)
        changes[key] = override.value()
    return changes


def saved_settings(settings: DictConfig, path: Path) -> DictConfig:
    """Return the settings of the run in folder ``path``, unresolved, and add today's defaults for missing keys.

    A missing key is taken from the option that the run chose for its group. A missing group gets the option that the
    run's model uses by default. A warning lists the keys and groups that were added.
    """
    if OmegaConf.select(settings, "model.name") is None:  # the file is damaged, not just older
        return settings
    completed = _plain(settings)
    for group in PLURALS:
        if group != "experiment" and not isinstance(completed.get(group, {}), dict):
            raise UsageError(f"{path}: {group}={completed[group]}: must be a block of settings, with a name", group)
    if filled := _fill(completed, _defaults(completed)):
        defaults = ", ".join(f"{key}={'null' if value is None else value}" for key, value in filled.items())
        log.warning("%s was made before these settings existed; using %s", path, defaults)
    return OmegaConf.create(completed)


def read_saved(config: DictConfig, path: Path) -> Settings:
    """Parse the settings of a run. path: their file, which errors name; a newer version wrote it, or it is damaged."""
    try:
        return read_settings(config)
    except UsageError as error:
        raise UsageError(f"{path}: {error}", *error.settings) from None


def _plain(config: Any) -> Any:
    """Convert a config to dicts and lists, with interpolations unresolved."""
    return OmegaConf.to_container(config, resolve=False)


def _defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Return today's defaults for the options chosen in ``settings``, without groups whose option no longer exists."""
    # The user's folder may be gone; the settings already hold the values of its options.
    folder = settings.get("config_dir")
    folder = folder if folder and Path(folder).is_dir() else None
    model = settings["model"]["name"]
    is_known = model in options("model", folder)
    today = _plain(compose([f"model={quoted(model)}"] if is_known else [], folder))
    others = [group for group in PLURALS if group in today and group not in ("model", "trainer")]
    names = {group: (settings if group in settings else today)[group].get("name") for group in others}
    known = {group: name for group, name in names.items() if name in options(group, folder)}
    # Compose without the model: its file also sets keys of other groups, perhaps to values newer than the run.
    plain = _plain(compose([f"{group}={quoted(name)}" for group, name in known.items()], folder))
    today |= {group: plain[group] for group in (*known, "trainer")}
    gone = (names.keys() - known.keys()) | (set() if is_known else {"model", "task"})
    return {key: value for key, value in today.items() if key not in gone}


def _fill(settings: dict[str, Any], today: dict[str, Any]) -> dict[str, Any]:
    """Add missing keys in place; return the added values by dotted key, and the added options by group."""
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
