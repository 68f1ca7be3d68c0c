"""Settings of runs that an earlier version left: what it had no word for is as it is now by default."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from odebench.compose import CONFIGS, PLURALS, load_option, options
from odebench.errors import UsageError
from odebench.record import schema
from odebench.record.reader import RunRecord
from odebench.settings import Settings, read_settings

log = logging.getLogger(__name__)


def saved_settings(run: RunRecord) -> DictConfig:
    """The settings of a run, unresolved. What its file lacks is taken from the option that was chosen; a group from the
    option that comes with the model. A line says so."""
    model = OmegaConf.select(run.settings, "model.name")
    if model is None:  # no earlier version, but a damaged file
        return run.settings
    settings = _plain(run.settings)
    filled = _fill(settings, model)
    if filled:
        told = ", ".join(f"{key}={'null' if value is None else value}" for key, value in filled.items())
        log.warning("%s was made before these settings were known; they are taken as %s", run.path, told)
    return OmegaConf.create(settings)


def read_saved(config: DictConfig, path: Path) -> Settings:
    """A run's settings read. UsageError names its file, and the fault: of a newer version's run, or a damaged one's."""
    try:
        return read_settings(config)
    except UsageError as error:
        raise UsageError(f"{path / schema.SETTINGS}: {error}", *error.settings) from None


def _plain(config: Any) -> Any:
    """Dicts and lists, interpolations as they are written."""
    return OmegaConf.to_container(config, resolve=False)


def _fill(settings: dict[str, Any], model: str) -> dict[str, Any]:
    """Add what is missing; what was added, by dotted key or group."""
    # A folder of YAML that is gone is not needed: what its options had is in the settings.
    folder = settings.get("config_dir")
    folder = folder if folder and Path(folder).is_dir() else None
    whole = _plain(OmegaConf.load(CONFIGS / "train.yaml"))
    filled: dict[str, Any] = {}

    def fill(node: Any, known: Any, where: str = "") -> None:
        for key, value in known.items():
            if key not in node:
                node[key] = value
                filled[f"{where}{key}"] = value

    brought = _brought(model, whole, folder)
    for group in PLURALS.keys() - {"experiment"}:
        if group not in settings:
            filled[group] = brought[group]
            settings[group] = _plain(load_option(group, brought[group], folder))
        name = settings[group].get("name", "default" if group == "trainer" else None)
        if name in options(group, folder):
            option = _plain(load_option(group, name, folder))
            fill(settings[group], option.pop("model") if group == "model" else option, f"{group}.")
            if group == "model":
                fill(settings, {key: value for key, value in option.items() if key not in PLURALS})
    fill(settings, {key: value for key, value in whole.items() if key not in ("defaults", "hydra")})
    return filled


def _brought(model: str, whole: dict[str, Any], folder: Path | str | None) -> dict[str, str]:
    """The option of each group that is chosen for a model where nobody chooses."""
    path = options("model", folder).get(model)
    of_model = _plain(OmegaConf.load(path)) if path else {}
    chosen: dict[str, str] = {}
    for entry in [*whole["defaults"], *of_model.get("defaults", ())]:
        if isinstance(entry, dict):
            chosen |= {str(key).removeprefix("override /"): value for key, value in entry.items()}
    return chosen
