"""Turn a command line or a sweep file, whose values are in Hydra's grammar, into the overrides of each job."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from odebench.config.compose import parse_overrides, quoted
from odebench.config.files import check_aliases, options
from odebench.config.groups import PLURALS
from odebench.errors import UsageError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Keys that a sweep sets itself -> what to use instead.
_RESERVED = {
    "run_dir": "each job has its own folder; choose the sweep's with --output DIR (train -m: hydra.sweep.dir=DIR)",
    "hydra": "it is a setting of `odebench train -m`; for a sweep use --output DIR and cluster=",
}

MAX_JOBS = 100_000

# A text with one of these characters must be quoted, or it would be read as several values.
_GRAMMAR_CHARACTERS = set(",[]{}'\"")


def expand(
    grids: Sequence[Sequence[str]], config_dir: Path | None = None, check_reserved: bool = True
) -> list[list[str]]:
    """Return the overrides of every job: all combinations of the values in each grid. The last key changes fastest.

    grids: a list of overrides for each grid, such as ``["solver=dopri5,tsit5", "seed=range(0,3)"]``. check_reserved:
    whether to reject keys that a sweep sets itself; `odebench eval` sets none. A UsageError lists every invalid
    override, one per line.
    """
    jobs, errors, _ = expand_valid(grids, config_dir, check_reserved)
    if errors:
        raise UsageError("\n".join(errors))
    return jobs


def expand_valid(
    grids: Sequence[Sequence[str]], config_dir: Path | None = None, check_reserved: bool = True
) -> tuple[list[list[str]], list[str], set[str]]:
    """Expand ``grids``, leaving out invalid overrides. Returns the jobs, the errors, and the uncertain keys.

    If the option of a group is invalid, the settings of this group are left out too, because another option might not
    have them. Keys are uncertain if the overrides that were left out decide whether they are valid.
    """
    jobs: list[list[str]] = []
    errors: list[str] = []
    uncertain_keys: set[str] = set()
    for grid in grids:
        values = [(one.partition("=")[0], _expand_override(one, config_dir, check_reserved, errors)) for one in grid]
        given = Counter(key for key, _ in values)
        # Of single values the last one counts, as in Hydra.
        repeated = dict.fromkeys(key for key, found in values if len(found) > 1 and given[key] > 1)
        errors += [f"{key} is given {given[key]} times; give all its values at once: {key}=A,B" for key in repeated]
        invalid_keys = {key for key, found in values if not found}
        valid = [found for key, found in values if found and key.partition(".")[0] not in invalid_keys]
        if (num := math.prod(map(len, valid))) > MAX_JOBS:
            raise UsageError(f"{num:,} jobs: a sweep has at most {MAX_JOBS:,}; give fewer values")
        jobs += map(list, itertools.product(*valid))
        # A model or an experiment also sets the options of other groups.
        uncertain_keys |= (invalid_keys - {""}) | (PLURALS.keys() if invalid_keys & {"model", "experiment"} else set())
    return jobs, list(dict.fromkeys(errors)), uncertain_keys


def _expand_override(argument: str, config_dir: Path | None, check_reserved: bool, errors: list[str]) -> list[str]:
    """Return one ``KEY=VALUE`` for each value. If the override is invalid, add its error to `errors` and return []."""
    try:
        (override,) = parse_overrides([argument], config_dir)
        for key, reason in _RESERVED.items() if check_reserved else ():
            if re.split("[./]", override.key_or_group)[0] == key and override.key_or_group != "hydra.searchpath":
                raise UsageError(f"{argument}: {reason}")
        if not override.is_sweep_override():
            return [argument]
        if (key := override.get_key_element()) == "outputs":
            raise UsageError(f"{argument}: all jobs of a sweep go to one folder; give one value")
        return [f"{key}={value}" for value in _override_values(override, config_dir)]
    except UsageError as error:
        errors.append(str(error))
        return []


def _override_values(override: "Override", config_dir: Path | None) -> list[str]:
    """Return the values of an override as text. Raises UsageError if there are none, or more than MAX_JOBS."""
    from hydra.core.override_parser.types import Glob

    line, key = override.input_line, override.key_or_group
    if not override.is_discrete_sweep():
        raise UsageError(f"{line}: a sweep needs values: a,b or choice(a,b) or range(start,stop,step)")
    if not isinstance(override._value, Glob):
        values = list(itertools.islice(override.sweep_string_iterator(), MAX_JOBS + 1))
        if not values:
            raise UsageError(f"{line}: gives no value")
        if len(values) > MAX_JOBS:
            raise UsageError(f"{line}: more than {MAX_JOBS:,} values; a sweep has at most that many jobs")
        return values
    if key not in PLURALS:
        raise UsageError(f"{line}: glob() works for the options of a group, such as solver")
    found = override._value.filter(list(options(key, config_dir)))
    if not found:
        raise UsageError(f"{line}: none of the {PLURALS[key]} matches (odebench list {PLURALS[key]})")
    return found


def read_grids(path: Path) -> list[list[str]]:
    """Read the grids of a sweep file. It has KEY: VALUES lines, or a list of such blocks, each of which is a grid.

    VALUES is a list of values, or text in the grammar of the command line. Raises UsageError for anything else.
    """
    import yaml

    try:
        check_aliases(path.read_bytes())
        content = OmegaConf.load(path)
    except FileNotFoundError:
        raise UsageError(f"--file {path}: no such file") from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"--file {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, DictConfig | ListConfig):
        raise UsageError(f"--file {path}: must hold KEY: VALUES lines, or a list of such blocks")
    plain: Any = OmegaConf.to_container(content, resolve=False)
    if not plain:
        raise UsageError(f"--file {path}: holds no settings; write KEY: VALUES lines, or a list of such blocks")
    grids = []
    for block in plain if isinstance(plain, list) else [plain]:
        if not isinstance(block, dict):
            raise UsageError(f"--file {path}: {block!r} is not a block of KEY: VALUES lines")
        grids.append([f"{key}={_grid_values(path, str(key), values)}" for key, values in block.items()])
    return grids


def _grid_values(path: Path, key: str, values: Any) -> str:
    if key.partition(".")[0] == "cluster":
        line = f"{key} cannot be set here; write it on the command line, or in a file of your own (--config-dir)"
        raise UsageError(f"--file {path}: {line}")
    if values == []:
        raise UsageError(f"--file {path}: {key} has no values")
    if isinstance(values, str):  # already in the grammar of the command line
        return values
    return ",".join(_grammar_text(path, key, value) for value in (values if isinstance(values, list) else [values]))


def _grammar_text(path: Path, key: str, value: Any) -> str:
    """Write a YAML value in the grammar of the command line."""
    if isinstance(value, dict):
        raise UsageError(f"--file {path}: {key} is a block; write its keys with dots, as in {key}.{next(iter(value))}")
    if isinstance(value, list):
        return "[" + ",".join(_grammar_text(path, key, entry) for entry in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, str) and _GRAMMAR_CHARACTERS & set(value):
        return quoted(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def merge_grids(grids: Sequence[Sequence[str]], overrides: Sequence[str]) -> list[list[str]]:
    """Add the overrides of the command line to every grid of a file. They replace overrides with the same key."""
    given = {override.partition("=")[0] for override in overrides}
    return [[*(one for one in grid if one.partition("=")[0] not in given), *overrides] for grid in grids]
