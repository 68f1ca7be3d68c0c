"""The one place that calls Hydra: where the YAML files are, what options they offer, and how they compose.

Hydra is imported inside functions, so that the command line can list and complete options without it.
"""

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from odebench.config.groups import PLURALS
from odebench.errors import UsageError, unknown_name, unknown_setting

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Hydra plugins that are separate packages, and the extra of odebench that installs each.
_EXTRAS = {
    "hydra/sweeper/optuna": "optuna",
    "hydra/launcher/joblib": "launchers",
    "hydra/launcher/submitit_local": "launchers",
    "hydra/launcher/submitit_slurm": "launchers",
}
# Settings that end with the training: they have no effect on an evaluation.
_TRAINING_ONLY = re.compile(
    r"(optim|schedule)(\..*)?|init_from|outputs|run_dir"
    r"|trainer\.(epochs|iterations|max_minutes|clip_grad_norm|average|patience|max_nfe|checkpoint_minutes|\w+_every)"
)
# OmegaConf copies what an alias repeats: ten aliases of ten aliases of ... of ten values take forever.
MAX_ALIASED_VALUES = 100_000
_RESOLVER = re.compile(r"\$\{[^{}]*:")


def _find_configs() -> Path:
    """The folder that holds train.yaml: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"odebench's configs are neither in {package} nor beside it: install it again")


CONFIGS = _find_configs()


def config_folders(config_dir: Path | str | None) -> list[Path]:
    """The folders that hold YAML: odebench's, then the user's. UsageError if the user's is missing."""
    if config_dir is None:
        return [CONFIGS]
    if not Path(config_dir).is_dir():
        raise UsageError(f"--config-dir {config_dir}: no such folder")
    return [CONFIGS, Path(config_dir).resolve()]


def options(group: str, config_dir: Path | str | None = None) -> dict[str, Path]:
    """The options of a group, name -> YAML file; odebench's come before a user's of the same name.

    A file whose name starts with _ is no option: others take settings from it by ``defaults: [_NAME]``.
    """
    return {name: path for name, path in _files(group, config_dir).items() if not name.startswith("_")}


def first_comment(path: Path) -> str:
    """The first comment of a YAML file that is not Hydra's ``# @package``."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ")
        if line and not line.startswith("#"):
            break
    return ""


def _files(group: str, config_dir: Path | str | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in config_folders(config_dir):
        for path in sorted((folder / group).rglob("*.yaml")):
            found.setdefault(path.relative_to(folder / group).with_suffix("").as_posix(), path)
    return found


def load_option(group: str, name: object, config_dir: Path | str | None = None) -> DictConfig:
    """One option's YAML, merged with the files of its ``defaults: [_NAME]``; UsageError where it is unknown."""
    known = options(group, config_dir)
    if name not in known:
        raise unknown_name(group, name, known, PLURALS[group])
    option, files = read_yaml(known[str(name)]), _files(group, config_dir)
    defaults = option.get("defaults", ())
    if not isinstance(defaults, ListConfig | tuple):
        raise UsageError(f"{known[str(name)]}: defaults: a list is needed, as in defaults: [_adaptive]")
    shared = [base for base in defaults if isinstance(base, str) and base in files]
    merged = OmegaConf.merge(*(read_yaml(files[base]) for base in shared), option)
    assert isinstance(merged, DictConfig)
    merged.pop("defaults", None)
    return merged


def read_yaml(path: Path) -> DictConfig:
    """The settings of a file, unresolved; UsageError names it where it cannot be read or holds something else."""
    try:
        check_aliases(path.read_bytes())
        config = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(config, DictConfig):
        raise UsageError(f"{path} holds no settings: KEY: VALUE lines are needed")
    return config


def check_aliases(text: bytes) -> None:
    """Raise YAMLError if the aliases of a YAML text repeat so many values that it would be read without end."""
    if b"&" not in text:  # no anchors
        return
    sizes: dict[int, float] = {}

    def size(node: yaml.Node) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # unless changed below, the node contains itself
            pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
            children = [] if isinstance(node, yaml.ScalarNode) else [child for pair in pairs for child in pair]
            sizes[id(node)] = 1 + sum(map(size, children))
        return sizes[id(node)]

    if size(yaml.compose(text, Loader=yaml.SafeLoader)) > MAX_ALIASED_VALUES:
        raise YAMLError(f"its aliases (*NAME) repeat more than {MAX_ALIASED_VALUES:,} values; write fewer")


def compose(overrides: list[str], config_dir: Path | None = None) -> DictConfig:
    """The settings of one training: train.yaml, the chosen options and the overrides, unresolved.

    Interpolations such as ``${tol}`` are kept, so that a saved copy can be overridden later. UsageError for a
    malformed override, an unknown key, an unknown option or a file that cannot be read.
    """
    import hydra
    from omegaconf import open_dict

    parsed = parse_overrides(overrides, config_dir)
    for override in parsed:
        key = override.key_or_group
        if override.is_sweep_override():
            raise UsageError(f"{override.input_line}: several values need -m (a multirun)", key)
        if re.match("hydra[./]", key) and key != "hydra.searchpath":
            line = f"{override.input_line}: has no effect without -m (a multirun); leave it out, or add -m"
            raise UsageError(line, key)
    try:
        with hydra.initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            chosen = [text for text in overrides if text != "experiment=null"]  # the default, which Hydra refuses
            config = hydra.compose("train", overrides=[*chosen, *config_dir_overrides(config_dir)])
    except Exception as error:
        raise explain_hydra_error(error, config_dir) from error
    with open_dict(config):
        return freeze_resolvers(apply_model_overrides(config, overrides))


def apply_model_overrides(config: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Apply, in place, the overrides that an experiment lists for the chosen model under ``models``.

    overrides: those of the command line, which take precedence. UsageError for a setting that the model does not have.
    """
    models, name = config.pop("models", {}), OmegaConf.select(config, "model.name")
    listed = models.get(name, ()) if isinstance(models, DictConfig | dict) else None
    if not isinstance(listed, ListConfig | tuple) or not all(isinstance(text, str) for text in listed):
        raise UsageError(f"models: a list of KEY=VALUE for each model is needed, as in {name}: [tol=1e-4]", "models")
    given = {override.key_or_group for override in parse_overrides(list(overrides), config.config_dir)}
    for override in parse_overrides(list(listed), config.config_dir):
        key = override.key_or_group
        if OmegaConf.select(config, key, default=_ABSENT) is _ABSENT:
            raise unknown_setting(key, known_keys(config.config_dir))
        if key not in given:
            OmegaConf.update(config, key, override.value())
    return config


def config_dir_overrides(config_dir: Path | None) -> list[str]:
    """Overrides that make Hydra search the user's folder and that keep it in the settings."""
    if config_dir is None:
        return []
    folder = config_folders(config_dir)[-1]
    return [f"hydra.searchpath=[{quoted(f'file://{folder}')}]", f"config_dir={quoted(str(folder))}"]


def quoted(text: str) -> str:
    """``text`` as a quoted string of Hydra's override grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def parse_overrides(overrides: list[str], config_dir: Path | None = None) -> list["Override"]:
    """Parse overrides with Hydra, and check the form of each and that the options of its group include its value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import RangeSweep
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    # A user who names a plugin needs its YAML folder too.
    lacks_folder = config_dir is None and any(text.startswith("extensions=") for text in overrides)
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            raise UsageError(_malformed(text)) from None
        except (ValueError, RecursionError):  # a number of more than 4,300 digits, or brackets in brackets in ...
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
        if key == "hydra.verbose":
            raise UsageError(f"{text}: has no effect; leave it out", key)
        group, _, name = key.partition(".")
        if name == "name" and group in PLURALS and str(override.value()) in options(group, config_dir):
            raise UsageError(f"{text}: write {group}={override.value()}, which brings its other settings too", key)
        try:
            _check_option(override, config_dir)
        except UsageError as error:
            if not lacks_folder:
                raise
            raise UsageError(
                f"{error}; a plugin's option needs --config-dir DIR, the folder of its YAML", *error.settings
            ) from None
        parsed.append(override)
    return parsed


def _malformed(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        return f"malformed setting {text!r}: write KEY=VALUE, such as tol=1e-3"
    if not re.fullmatch(r"[\w./@+~-]+", key) or value.startswith("="):
        return f"malformed setting {text!r}: write one key, one =, one value, such as tol=1e-3"
    return f"malformed setting {text!r}: put the value into quotes, as in \"{key}='{value}'\""


def _check_option(override: "Override", config_dir: Path | None) -> None:
    """UsageError for an option that a group does not have, one line for each in a sweep."""
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


def explain_hydra_error(error: Exception, config_dir: Path | None = None) -> UsageError:
    """An error of Hydra, OmegaConf or YAML as a UsageError of one line; any other error is raised again."""
    from hydra.errors import HydraException

    if isinstance(error, UsageError):
        return error
    if isinstance(error, UnicodeDecodeError | RecursionError) and config_dir is not None:
        list(map(read_yaml, sorted(Path(config_dir).rglob("*.yaml"))))  # an unreadable one raises a UsageError
        return UsageError(f"--config-dir {config_dir}: the defaults of its files include each other without end")
    is_of_yaml = isinstance(error, HydraException | OmegaConfBaseException | YAMLError)
    if not is_of_yaml and "defaults list" not in str(error):  # for which Hydra has a plain ValueError
        raise error
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_setting(found[1], known_keys(config_dir))
    if found := re.search(r"Could not find '([^']+)'", text):
        group, _, name = found[1].partition("/")
        if group in PLURALS:
            return unknown_name(group, name, options(group, config_dir), PLURALS[group])
        if found[1] in _EXTRAS:
            extra = _EXTRAS[found[1]]
            return UsageError(f'{found[1]} is not installed: from the checkout, pip install -e ".[{extra}]"')
        offered = re.search(r"Available options in '[^']+':\s*(.*?)\s*Config search", text, re.DOTALL)
        return UsageError(f"no {found[1]}" + (f" (installed: {', '.join(offered[1].split())})" if offered else ""))
    return UsageError(" ".join(text.split()))


def known_keys(config_dir: Path | None = None) -> list[str]:
    """Every setting that some choice of options offers, dotted, e.g. ``optim.lr``; and the groups."""
    top = [str(key) for key in read_yaml(CONFIGS / "train.yaml")]
    keys = []
    for group in PLURALS:
        keys.append(group)
        for name in options(group, config_dir) if group != "experiment" else ():
            option = load_option(group, name, config_dir)
            # A global file, such as a model's, has top-level keys beside the group's.
            if isinstance(option.get(group), DictConfig):
                top += [str(key) for key in option if key != group]
                option = option[group]
            keys += [f"{group}.{key}" for key in map(str, option)]
    keys = [*(key for key in top if key not in ("defaults", "hydra")), *keys]
    return list(dict.fromkeys(keys))


def override_saved(config: DictConfig, overrides: list[str]) -> DictConfig:
    """A copy of saved settings with new overrides, for evaluation.

    A group's option (``solver=rk4``) is read from its file before the single keys are set. A new solver or tolerance
    replaces a saved eval_solver or eval_tol.
    """
    config_dir = config.get("config_dir")
    new = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    assert isinstance(new, DictConfig)
    parsed = parse_overrides(overrides, config_dir)
    keys = {override.key_or_group for override in parsed}
    if any(key == "solver" or key.startswith("solver.") for key in keys):
        new.eval_solver = None
    if keys & {"tol", "solver.rtol", "solver.atol"}:
        new.eval_tol = None
    for override in parsed:
        if override.is_sweep_override():
            raise UsageError(f"{override.input_line}: one value only", override.key_or_group)
        if (group := override.key_or_group) == "experiment":
            raise UsageError(f"{override.input_line}: the experiment of a finished run cannot change", group)
        if _TRAINING_ONLY.fullmatch(group):
            raise UsageError(f"{override.input_line}: has no effect after the training; leave it out", group)
        if group in PLURALS:
            option = load_option(group, override.value(), config_dir)
            if group == "model" and option.get("task", new.task) != new.task:
                line = f"{override.input_line}: is for task {option.task}, the run for {new.task}; choose another model"
                raise UsageError(line, group)
            new[group] = option.get(group, option) if group == "model" else option
    for override in parsed:
        key = override.key_or_group
        if key not in PLURALS:
            if OmegaConf.select(new, key, default=_ABSENT) is _ABSENT:
                raise unknown_setting(key, [*PLURALS, *dotted_keys(new)])
            OmegaConf.update(new, key, override.value(), merge=False)
    return new


_ABSENT = object()


def dotted_keys(config: DictConfig) -> list[str]:
    """The keys of a composed config, those of the groups dotted."""
    keys = []
    for key in map(str, config):
        group = config.get(key) if key in PLURALS else None
        keys += [f"{key}.{inner}" for inner in map(str, group)] if isinstance(group, DictConfig) else [key]
    return keys


def freeze_resolvers(config: DictConfig) -> DictConfig:
    """Replace ``${now:...}``, ``${oc.env:...}`` and other resolvers by their present values, in place.

    A saved settings file then holds what was used, and reading it back runs no resolver.
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
    """Plain dicts and lists with all interpolations resolved; UsageError names the key that cannot be."""
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "settings"
        raise UsageError(f"{key}: {' '.join(str(error.args[0]).split())}", key) from error


def refuse_resolvers(config: DictConfig) -> None:
    """UsageError if a resolver is left: a saved file must not read the environment or the clock."""
    for key, text in _strings(OmegaConf.to_container(config, resolve=False)):
        if _RESOLVER.search(text):
            raise UsageError(f"{key}={text}: resolvers are not read from saved settings; write the value", key)


def _strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, string) of every string inside a plain container."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict | list):
        for inner, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _strings(value, f"{key}.{inner}" if key else str(inner))
