"""Compose settings with Hydra, from the YAML files, the chosen options and the overrides. Only done here.

Hydra is imported inside functions, so that importing this module is fast.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from odebench.config.files import CONFIGS, config_folders, known_keys, options, read_yaml
from odebench.config.groups import PLURALS
from odebench.errors import UsageError, unknown_name, unknown_setting

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Hydra plugins that are separate packages -> the extra of odebench that installs them.
_EXTRAS = {
    "hydra/sweeper/optuna": "optuna",
    **{f"hydra/launcher/{name}": "launchers" for name in ("joblib", "submitit_local", "submitit_slurm")},
}
# Settings that matter only during training: they have no effect on an evaluation.
_TRAINING_ONLY = re.compile(
    r"(optim|schedule)(\..*)?|init_from|outputs|run_dir|name|tags|notes|trainer\.(epochs|iterations|max_minutes|patience"
    r"|max_nfe|clip_grad_norm|average|objective|figures|profile|checkpoint_minutes|\w+_every)"
)
_HYDRA_SETTINGS = re.compile(r"hydra([./](launcher|sweeper)\b|\.sweep\.dir$|\.searchpath$)")
_RESOLVER = re.compile(r"\$\{[^{}]*:")
# The folder of a sweep's job, which Hydra would want in quotes: init_from=sweep/0000_tol=0.1.
_PATH_WITH_EQUALS = re.compile(r"^(\w[\w.]*=)([\w.~+-]*/[\w./~+-]*=[\w./=~+-]*)$")


def compose(
    overrides: Sequence[str], config_dir: Path | str | None = None, saved: DictConfig | None = None
) -> DictConfig:
    """Compose the settings of a training from train.yaml, the chosen options and the overrides.

    saved: the settings of a finished run, which are used in place of train.yaml; their config_dir replaces the
    argument. If an override changes the solver or the tolerance, a saved eval_solver or eval_tol is dropped.

    Interpolations such as ``${tol}`` are not resolved, so that a saved copy can be overridden later. Raises UsageError
    for a malformed override, an unknown key, an unknown option or a file that cannot be read.
    """
    folder = config_dir if saved is None else saved.get("config_dir")
    parsed = parse_overrides(overrides, folder)
    for override in parsed:
        _check_new(override) if saved is None else _check_saved(override)
    if saved is None:
        config = _compose_choices(parsed, folder)
        return finish_composition(_set_values(config, _values(parsed), lambda: known_keys(folder)), parsed)
    config = OmegaConf.masked_copy(saved, list(saved))
    _replace_choices(config, parsed, folder)
    OmegaConf.set_struct(config, True)
    values = [override for override in parsed if override.key_or_group not in PLURALS]
    return _set_values(config, values, lambda: [*PLURALS, *_dotted_keys(config)], merge=False)


def _check_new(override: "Override") -> None:
    key = override.key_or_group
    if override.is_sweep_override():
        raise UsageError(
            f"{override.input_line}: {hint_for_label(override) or 'several values need -m (a sweep)'}", key
        )
    if re.match("hydra[./]", key) and key != "hydra.searchpath":
        line = f"{override.input_line}: has no effect without -m (a sweep); leave it out, or add -m"
        raise UsageError(line, key)


def hint_for_label(override: "Override") -> str:
    """Say how to write a name, tags or notes with commas, which would be several values; empty for other settings."""
    key, _, text = str(override.input_line).partition("=")
    if key == "tags":
        return f'write them as a list, as in "tags=[{text}]"'
    return f"text with a comma needs quotes, as in \"{key}='{text}'\"" if key in ("name", "notes") else ""


def _check_saved(override: "Override") -> None:
    key = override.key_or_group
    if override.is_sweep_override():
        raise UsageError(f"{override.input_line}: give one value only", key)
    if key == "experiment":
        raise UsageError(f"{override.input_line}: the experiment of a finished run cannot change", key)
    if _TRAINING_ONLY.fullmatch(key):
        raise UsageError(f"{override.input_line}: has no effect after the training; leave it out", key)


def _is_choice(override: "Override") -> bool:
    """Whether Hydra must read YAML files to apply this override."""
    key = override.key_or_group
    return key in PLURALS or key.startswith("hydra/") or key == "hydra.searchpath"


def _choices(parsed: Iterable["Override"]) -> list[str]:
    chosen = [str(override.input_line) for override in parsed if _is_choice(override)]
    return [text for text in chosen if text != "experiment=null"]  # the default, which Hydra refuses


def _values(parsed: Iterable["Override"]) -> list["Override"]:
    return [override for override in parsed if not _is_choice(override)]


# Cache. Key: the choices, the user's folder, and the times of its files. Value: the composed settings or the error.
_composed: dict[tuple[Any, ...], DictConfig | UsageError] = {}


def _compose_choices(parsed: Sequence["Override"], config_dir: Path | str | None) -> DictConfig:
    """Compose train.yaml and the chosen options, without the other overrides. Results are cached."""
    choices = _choices(parsed)
    folder = config_folders(config_dir)[-1]
    key = (*choices, folder, *(_file_times(folder) if folder != CONFIGS else ()))
    if key not in _composed:
        try:
            _composed[key] = _call_hydra(choices, config_dir)
        except UsageError as error:
            _composed[key] = error
    composed = _composed[key]
    if isinstance(composed, UsageError):
        raise composed
    return copy.deepcopy(composed)


def _file_times(folder: Path) -> Iterator[tuple[Path, int]]:
    for group in PLURALS:
        for path in (folder / group).rglob("*.yaml"):
            yield path, path.lstat().st_mtime_ns


def compose_with_hydra(overrides: Sequence[str], config_dir: Path | str | None = None) -> DictConfig:
    """Compose the settings of a training, and Hydra's own settings. Does not call ``finish_composition``."""
    parsed = parse_overrides(overrides, config_dir)
    config = _call_hydra(_choices(parsed), config_dir, with_hydra=True)
    return _set_values(config, _values(parsed), lambda: known_keys(config_dir))


def compose_option(group: str, name: str, config_dir: Path | str | None = None) -> DictConfig:
    """Compose an option of a group that is not part of a training's settings, such as ``cluster``."""
    option = _call_hydra([f"+{group}={quoted(name)}"], config_dir)[group]
    assert isinstance(option, DictConfig)
    return option


def _call_hydra(overrides: Sequence[str], config_dir: Path | str | None, with_hydra: bool = False) -> DictConfig:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    # Hydra can be initialised only once, and a user's program may have done so.
    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with hydra.initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            arguments = [*overrides, *config_dir_overrides(config_dir)]
            return hydra.compose("train", overrides=arguments, return_hydra_config=with_hydra)
    except Exception as error:
        raise explain_hydra_error(error, config_dir) from error
    finally:
        GlobalHydra.instance().hydra = running


def _set_values(
    config: DictConfig, values: Iterable["Override"], known: Callable[[], list[str]], merge: bool = True
) -> DictConfig:
    """Set single settings in place. Raises UsageError for a key that the config does not have."""
    for override in values:
        try:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=merge)
        except (ConfigAttributeError, ConfigKeyError):
            raise unknown_setting(override.key_or_group, known()) from None
        except (OmegaConfBaseException, ValueError) as error:
            parent = override.key_or_group.rpartition(".")[0]
            raise UsageError(f"{override.input_line}: set all of {parent} at once", override.key_or_group) from error
    return config


def _replace_choices(config: DictConfig, parsed: Sequence["Override"], config_dir: Path | str | None) -> None:
    """Replace, in place, each group of saved settings for which ``parsed`` chooses another option."""
    keys = {override.key_or_group for override in parsed}
    if any(key == "solver" or key.startswith("solver.") for key in keys):
        config.eval_solver = None
    if keys & {"tol", "solver.rtol", "solver.atol"}:
        config.eval_tol = None
    chosen = {override.key_or_group: override for override in parsed if override.key_or_group in PLURALS}
    new = _compose_choices([*chosen.values()], config_dir) if chosen else config
    if "model" in chosen and new.get("task", config.task) != config.task:
        line = f"is for task {new.task}, the run for {config.task}; choose another model"
        raise UsageError(f"{chosen['model'].input_line}: {line}", "model")
    for group in chosen:
        config[group] = OmegaConf.to_container(new[group], resolve=False)


def finish_composition(config: DictConfig, parsed: Sequence["Override"]) -> DictConfig:
    """Apply the experiment's overrides for the chosen model, and replace resolvers by their values. Works in place.

    Makes data.root absolute, so that the run can be evaluated from any working directory.
    """
    with open_dict(config):
        freeze_resolvers(_apply_model_overrides(config, parsed))
    root = OmegaConf.select(config, "data.root", throw_on_resolution_failure=False)
    if isinstance(root, str) and root:
        config.data.root = str(Path(root).expanduser().absolute())
    return config


def _apply_model_overrides(config: DictConfig, parsed: Sequence["Override"]) -> DictConfig:
    """Apply, in place, the overrides that an experiment lists for the chosen model under ``models``.

    parsed: the overrides of the command line, which take precedence. Raises UsageError for a setting that does not
    exist, for example because the model does not have it.
    """
    models, name = config.pop("models", {}), OmegaConf.select(config, "model.name")
    listed = models.get(name, ()) if isinstance(models, DictConfig | dict) else None
    if not isinstance(listed, ListConfig | tuple) or not all(isinstance(text, str) for text in listed):
        raise UsageError(f"models: a list of KEY=VALUE for each model is needed, as in {name}: [tol=1e-4]", "models")
    given = {override.key_or_group for override in parsed}
    for override in parse_overrides(listed, config.config_dir):
        key = override.key_or_group
        if OmegaConf.select(config, key, default=_ABSENT) is _ABSENT:
            raise unknown_setting(key, known_keys(config.config_dir))
        if key not in given:
            OmegaConf.update(config, key, override.value())
    return config


def config_dir_overrides(config_dir: Path | str | None) -> list[str]:
    """Return the overrides that make Hydra search the user's folder, and that store this folder in the settings."""
    if config_dir is None:
        return []
    folder = config_folders(config_dir)[-1]
    return [f"hydra.searchpath=[{quoted(f'file://{folder}')}]", f"config_dir={quoted(str(folder))}"]


def quoted(text: str) -> str:
    """Quote ``text`` for Hydra's override grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def parse_overrides(overrides: Iterable[str], config_dir: Path | str | None = None) -> list["Override"]:
    """Parse overrides with Hydra. Raises UsageError for a wrong form, or an option that the group does not have."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import RangeSweep
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    # A user who names a plugin needs its YAML folder too.
    lacks_folder = config_dir is None and any(text.startswith("extensions=") for text in overrides)
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(_PATH_WITH_EQUALS.sub(r"\1'\2'", text))
        except HydraException:
            raise UsageError(_malformed(text)) from None
        except (ValueError, RecursionError):  # a number of more than 4,300 digits, or deeply nested brackets
            raise UsageError(f"{text[:60]}...: is too long to be a number or a list; give a shorter value") from None
        key = override.key_or_group
        if not key:
            raise UsageError(_malformed(text))
        if override.is_add() or override.is_force_add():
            raise UsageError(f"{text}: settings cannot be added; write KEY=VALUE without the plus", key)
        if isinstance(sweep := override.value(), RangeSweep) and sweep.step == 0:
            raise UsageError(f"{text}: a step of 0 never ends; give another one, as in range(0,5,1)", key)
        if override.is_delete():
            raise UsageError(f"{text}: settings cannot be removed; many can be null, as in KEY=null", key)
        if override.package is not None:
            raise UsageError(f"{text}: packages (@) cannot be chosen; write GROUP=OPTION", key)
        if key == "config_dir":
            raise UsageError(f"{text}: write --config-dir DIR", key)
        if key.startswith("hydra.run."):
            raise UsageError(f"{text}: has no effect; run_dir=DIR chooses a run's folder", key)
        if re.match("hydra[./]", key) and not _HYDRA_SETTINGS.match(key):
            raise UsageError(f"{text}: has no effect; leave it out", key)
        if key.startswith("hydra/") and not (override.is_sweep_override() or isinstance(override.value(), str)):
            raise UsageError(f"{text}: name one option, as in {key}=basic", key)
        group, _, name = key.partition(".")
        if name == "name" and group in PLURALS and str(override.value()) in options(group, config_dir):
            raise UsageError(f"{text}: write {group}={override.value()}, which also sets its other settings", key)
        try:
            _check_option(override, config_dir)
        except UsageError as error:
            if not lacks_folder:
                raise
            line = f"{error}; a plugin's option needs --config-dir DIR, the folder of its YAML"
            raise UsageError(line, *error.settings) from None
        parsed.append(override)
    return parsed


def _malformed(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        return f"malformed setting {text!r}: write KEY=VALUE, such as tol=1e-3"
    if not re.fullmatch(r"[\w./@+~-]+", key) or value.startswith("="):
        return f"malformed setting {text!r}: write one key, one =, one value, such as tol=1e-3"
    return f"malformed setting {text!r}: put the value into quotes, as in \"{key}='{value}'\""


def _check_option(override: "Override", config_dir: Path | str | None) -> None:
    """Raise UsageError if a group does not have the option; for a sweep, one line for each such option."""
    group = override.key_or_group
    if group not in PLURALS:
        return
    values: Iterable[object] = [override.value()]
    if override.is_sweep_override():
        if not override.is_discrete_sweep() or "glob(" in str(override.input_line):
            return
        values = override.sweep_string_iterator()
    known, errors = options(group, config_dir), list[str]()
    for value in values:
        if str(value) in known or (group == "experiment" and value in (None, "null")):
            continue
        name = {None: "null", "": "''"}.get(value, value) if isinstance(value, str | None) else value
        errors.append(str(unknown_name(group, name, known, PLURALS[group])))
    if errors:
        raise UsageError("\n".join(errors), group)


def explain_hydra_error(error: Exception, config_dir: Path | str | None = None) -> UsageError:
    """Convert an error of Hydra, OmegaConf or YAML to a UsageError of one line; raise any other error again."""
    from hydra.errors import HydraException, MissingConfigException

    if isinstance(error, UsageError):
        return error
    if isinstance(error, UnicodeDecodeError | RecursionError) and config_dir is not None:
        list(map(read_yaml, sorted(Path(config_dir).rglob("*.yaml"))))  # an unreadable one raises a UsageError
        return UsageError(f"--config-dir {config_dir}: the defaults of its files include each other without end")
    is_of_yaml = isinstance(error, HydraException | OmegaConfBaseException | YAMLError)
    if not is_of_yaml and "defaults list" not in str(error):  # Hydra raises a plain ValueError for these
        raise error
    if isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError):
        return unknown_setting(str(error.__cause__.full_key), known_keys(config_dir))
    if isinstance(error, MissingConfigException) and error.options:
        return _missing_option(str(error.missing_cfg_file), error.options, config_dir)
    return UsageError(" ".join(str(error).split()))


def _missing_option(path: str, installed: Sequence[str], config_dir: Path | str | None) -> UsageError:
    """Return the error for an option that Hydra does not find, such as ``model/odnet`` and ``hydra/sweeper/optuna``."""
    group, _, name = path.partition("/")
    if group in PLURALS:
        return unknown_name(group, name, options(group, config_dir), PLURALS[group])
    if path in _EXTRAS:
        return UsageError(f'{path} is not installed: from the checkout, pip install -e ".[{_EXTRAS[path]}]"')
    return UsageError(f"no {path} (installed: {', '.join(installed)})")


_ABSENT = object()


def _dotted_keys(config: DictConfig) -> list[str]:
    """Return the keys of a composed config; the keys inside a group are dotted."""
    keys = []
    for key in map(str, config):
        group = config.get(key) if key in PLURALS else None
        keys += [f"{key}.{inner}" for inner in map(str, group)] if isinstance(group, DictConfig) else [key]
    return keys


def freeze_resolvers(config: DictConfig) -> DictConfig:
    """Replace ``${now:...}``, ``${oc.env:...}`` and other resolvers by their present values, in place.

    A saved settings file then holds the values that were used, and no resolver runs when it is read again.
    """
    for key, text in list(_strings(OmegaConf.to_container(config, resolve=False))):
        if _RESOLVER.search(text):
            try:
                OmegaConf.update(config, key, OmegaConf.select(config, key))
            except OmegaConfBaseException as error:
                reason = " ".join(str(error).split())
                raise UsageError(f"{key}={text}: {reason}", key) from error
    return config


def resolved(config: Any) -> dict[str, Any]:
    """Return plain dicts and lists, all interpolations resolved. A UsageError names a key that cannot be resolved."""
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "settings"
        raise UsageError(f"{key}: {' '.join(str(error.args[0]).split())}", key) from error


def refuse_resolvers(config: DictConfig) -> None:
    """Raise UsageError if the config contains a resolver: saved settings must not read the environment or the clock."""
    for key, text in _strings(OmegaConf.to_container(config, resolve=False)):
        if _RESOLVER.search(text):
            raise UsageError(f"{key}={text}: resolvers are not read from saved settings; write the value", key)


def _strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, string) for every string inside a plain container."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict | list):
        for inner, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _strings(value, f"{key}.{inner}" if key else str(inner))
