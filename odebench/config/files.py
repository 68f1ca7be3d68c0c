"""Find the YAML files of settings, and list their options and keys. Imports no Hydra, so that errors appear fast."""

import math
from dataclasses import fields
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from odebench.config.groups import PLURALS
from odebench.config.schema import CHOICES
from odebench.config.schema.solver import SolverSettings
from odebench.errors import UsageError

# OmegaConf copies the value of every alias: ten aliases of ten aliases of ... of ten values take forever.
MAX_ALIASED_VALUES = 100_000


def _find_configs() -> Path:
    """Return the folder that holds train.yaml: inside the package in a wheel, beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"odebench's configs are neither in {package} nor beside it: install it again")


CONFIGS = _find_configs()


def config_folders(config_dir: Path | str | None) -> list[Path]:
    """Return odebench's folder of YAML files, then the user's. Raises UsageError if the user's does not exist."""
    if config_dir is None:
        return [CONFIGS]
    if not Path(config_dir).is_dir():
        raise UsageError(f"--config-dir {config_dir}: no such folder")
    return [CONFIGS, Path(config_dir).resolve()]


def options(group: str, config_dir: Path | str | None = None) -> dict[str, Path]:
    """Return the options of a group: name -> YAML file. Of two files with the same name, odebench's is used.

    A file whose name starts with _ is not an option: other files include its settings with ``defaults: [_NAME]``.
    """
    return {name: path for name, path in _files(group, config_dir).items() if not name.startswith("_")}


def first_comment(path: Path) -> str:
    """Return the first comment line of a YAML file, other than Hydra's ``# @package``."""
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


def read_yaml(path: Path) -> DictConfig:
    """Read the settings in a file without resolving them. Raises UsageError if it cannot be read or holds none."""
    try:
        check_aliases(path.read_bytes())
        config = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(config, DictConfig):
        raise UsageError(f"{path} holds no settings: KEY: VALUE lines are needed")
    return config


def check_aliases(text: bytes) -> None:
    """Raise YAMLError if the aliases in a YAML text repeat so many values that reading it would take forever."""
    if b"&" not in text:  # no anchors
        return
    sizes: dict[int, float] = {}

    def size(node: yaml.Node) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # stays infinite for a node that contains itself
            pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
            children = [] if isinstance(node, yaml.ScalarNode) else [child for pair in pairs for child in pair]
            sizes[id(node)] = 1 + sum(map(size, children))
        return sizes[id(node)]

    if size(yaml.compose(text, Loader=yaml.SafeLoader)) > MAX_ALIASED_VALUES:
        raise YAMLError(f"its aliases (*NAME) repeat more than {MAX_ALIASED_VALUES:,} values; write fewer")


def known_keys(config_dir: Path | str | None = None) -> list[str]:
    """Return the dotted key of every setting that any option has, e.g. ``optim.lr``, and the names of the groups."""
    from odebench.ode.methods import METHODS

    top = [str(key) for key in read_yaml(CONFIGS / "train.yaml") if key not in ("defaults", "hydra")] + ["task"]
    names = {
        group: [field.name for kind in kinds.values() for field in fields(kind)] for group, kinds in CHOICES.items()
    }
    names["solver"] = [field.name for field in fields(SolverSettings) if field.name != "options"]
    names["solver"] += [name for method in METHODS.values() for name in getattr(method, "options", ())]
    for group in names:
        for path in _files(group, config_dir).values():
            if CONFIGS in path.parents:  # the fields above already include the keys of odebench's files
                continue
            option = read_yaml(path)
            # A file with `# @package _global_`, such as a model's, also has top-level keys.
            if isinstance(option.get(group), DictConfig):
                top += [str(key) for key in option if key != "defaults"]
                option = option[group]
            names[group] += [str(key) for key in option if key != "defaults"]
    dotted = [key for group in PLURALS for key in (group, *(f"{group}.{name}" for name in names.get(group, ())))]
    return list(dict.fromkeys([*top, *dotted]))
