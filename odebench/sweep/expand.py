"""From the words of a command line or of a sweep file to the overrides of each job, by Hydra's own grammar."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from odebench.config.compose import options, parse_overrides, quoted
from odebench.config.groups import PLURALS
from odebench.errors import UsageError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# What a sweep decides itself.
_RESERVED = {
    "run_dir": "each job has a folder of its own; the sweep's is chosen by --output DIR",
    "hydra": "it belongs to `odebench train -m`; a sweep has --output DIR and cluster=",
}

MAX_JOBS = 100_000

# What would make more than one value of a text, or another one.
_GRAMMAR_CHARACTERS = set(",[]{}'\"")


def expand(
    grids: Sequence[Sequence[str]], config_dir: Path | None = None, check_reserved: bool = True
) -> list[list[str]]:
    """The overrides of every job: all combinations of each grid's values, the last key's value changing first.

    grids: the words of each, such as ``["solver=dopri5,tsit5", "seed=range(0,3)"]``. UsageError tells every
    word at fault, a line each. is_sweep: whether each job gets a run of its own; a study evaluates one.
    """
    jobs, errors, _ = expand_valid(grids, config_dir, check_reserved)
    if errors:
        raise UsageError("\n".join(errors))
    return jobs


def expand_valid(
    grids: Sequence[Sequence[str]], config_dir: Path | None = None, check_reserved: bool = True
) -> tuple[list[list[str]], list[str], set[str]]:
    """The jobs of `expand` as if the words at fault had not been there; their faults; and the keys in doubt by them.

    With a group's option the settings of the group go, which another option might not have.
    """
    jobs: list[list[str]] = []
    errors: list[str] = []
    uncertain_keys: set[str] = set()
    for words in grids:
        values = [
            (word.partition("=")[0], _expand_override(word, config_dir, check_reserved, errors)) for word in words
        ]
        invalid_keys = {key for key, found in values if not found}
        valid = [found for key, found in values if found and key.partition(".")[0] not in invalid_keys]
        if (num := math.prod(map(len, valid))) > MAX_JOBS:
            raise UsageError(f"{num:,} jobs; a sweep has at most {MAX_JOBS:,}: give fewer values")
        jobs += map(list, itertools.product(*valid))
        # A model, and an experiment, bring the options of other groups.
        uncertain_keys |= (invalid_keys - {""}) | (PLURALS.keys() if invalid_keys & {"model", "experiment"} else set())
    return jobs, list(dict.fromkeys(errors)), uncertain_keys


def _expand_override(word: str, config_dir: Path | None, check_reserved: bool, errors: list[str]) -> list[str]:
    """One ``KEY=VALUE`` for each of the word's values; a fault is added to the list instead."""
    try:
        (override,) = parse_overrides([word], config_dir)
        for key, reason in _RESERVED.items() if check_reserved else ():
            if override.key_or_group.replace("/", ".").partition(".")[0] == key:
                raise UsageError(f"{word}: {reason}")
        if not override.is_sweep_override():
            return [word]
        if (key := override.get_key_element()) == "outputs":
            raise UsageError(f"{word}: all jobs of a sweep go to one folder")
        return [f"{key}={value}" for value in _override_values(override, config_dir)]
    except UsageError as error:
        errors.append(str(error))
        return []


def _override_values(override: "Override", config_dir: Path | None) -> Iterator[str]:
    from hydra.core.override_parser.types import Glob

    if not override.is_discrete_sweep():
        raise UsageError(f"{override.input_line}: a sweep needs values: a,b or choice(a,b) or range(start,stop,step)")
    elif isinstance(override._value, Glob):
        key = override.key_or_group
        if key not in PLURALS:
            raise UsageError(f"{override.input_line}: glob() chooses among the options of a group, such as solver")
        found = override._value.filter(list(options(key, config_dir)))
        if not found:
            raise UsageError(f"{override.input_line}: none of the {PLURALS[key]} fits (odebench list {PLURALS[key]})")
        yield from found
    elif not (values := list(itertools.islice(override.sweep_string_iterator(), MAX_JOBS + 1))):
        raise UsageError(f"{override.input_line}: there is no value in it")
    elif len(values) > MAX_JOBS:
        raise UsageError(f"{override.input_line}: more than {MAX_JOBS:,} values, the most that a sweep has of jobs")
    else:
        yield from values


def read_grids(path: Path) -> list[list[str]]:
    """The grids of a sweep file: KEY: VALUES lines, or a list of such blocks, each a grid of its own.

    VALUES is a list of values, or text in the grammar of the command line. UsageError where it is anything else.
    """
    import yaml

    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        raise UsageError(f"--file {path}: no such file") from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--file {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, DictConfig | ListConfig):
        raise UsageError(f"--file {path}: KEY: VALUES lines are needed, or a list of such blocks")
    plain: Any = OmegaConf.to_container(content, resolve=False)
    if not plain:
        raise UsageError(f"--file {path}: holds no settings; KEY: VALUES lines are needed, or a list of such blocks")
    grids = []
    for block in plain if isinstance(plain, list) else [plain]:
        if not isinstance(block, dict):
            raise UsageError(f"--file {path}: {block!r} is no block of KEY: VALUES lines")
        grids.append([f"{key}={_grid_values(path, str(key), values)}" for key, values in block.items()])
    return grids


def _grid_values(path: Path, key: str, values: Any) -> str:
    if key.partition(".")[0] == "cluster":
        raise UsageError(f"--file {path}: {key} stands on the command line, or in a file of yours (--config-dir)")
    if values == []:
        raise UsageError(f"--file {path}: {key} has no values")
    if isinstance(values, str):  # in the grammar already
        return values
    return ",".join(_grammar_text(path, key, value) for value in (values if isinstance(values, list) else [values]))


def _grammar_text(path: Path, key: str, value: Any) -> str:
    """A YAML value in the grammar of the command line."""
    if isinstance(value, dict):
        raise UsageError(f"--file {path}: {key} is a block; write its keys with dots, as in {key}.{next(iter(value))}")
    if isinstance(value, list):
        return "[" + ",".join(_grammar_text(path, key, entry) for entry in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, str) and _GRAMMAR_CHARACTERS & set(value):
        return quoted(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def merge_grids(grids: Sequence[Sequence[str]], words: Sequence[str]) -> list[list[str]]:
    """The words of the command line joined to every grid of a file; they win where both name a key."""
    given = {word.partition("=")[0] for word in words}
    return [[*(word for word in grid if word.partition("=")[0] not in given), *words] for grid in grids]
