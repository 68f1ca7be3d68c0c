"""Read the settings of the group `cluster`: where the jobs of a sweep run. They are no settings of a training."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from omegaconf import OmegaConf

from odebench.config.compose import compose_option, compose_with_hydra, parse_overrides
from odebench.config.files import options, read_yaml
from odebench.config.parsing import as_written, read_dataclass
from odebench.config.schema.base import NonNegativeInt, PositiveInt
from odebench.errors import UsageError, unknown_name

GROUP = "cluster"
_NAME_PATTERN = r"[\w.,:+@/-]+"


@dataclass(frozen=True)
class LocalCluster:
    """Settings of `cluster=local`: this machine."""

    num_processes: ClassVar[int] = 1  # number of processes that train one model

    name: Literal["local"]
    jobs: PositiveInt
    threads: PositiveInt | None
    devices: tuple[NonNegativeInt, ...] | None


@dataclass(frozen=True)
class SlurmCluster:
    """Settings of `cluster=slurm`: options of sbatch. None means the default of the cluster."""

    name: Literal["slurm"]
    jobs: PositiveInt | None
    partition: str | None
    account: str | None
    time: str | None
    nodes: PositiveInt
    processes: PositiveInt | None
    gpus: PositiveInt | None
    cpus: PositiveInt
    memory: str | None
    warning_s: PositiveInt
    directives: dict[str, Any]
    setup: tuple[str, ...]

    @property
    def processes_per_node(self) -> int:
        """Number of processes that train one model on each node."""
        return self.processes or self.gpus or 1

    @property
    def num_processes(self) -> int:
        """Number of processes that train one model."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class HydraLauncher:
    """A launcher of Hydra. overrides: those that choose it and change its settings."""

    num_processes: ClassVar[int] = 1

    overrides: tuple[str, ...]


_CLUSTER_TYPES: dict[str, type] = {"local": LocalCluster, "slurm": SlurmCluster}
# Options of sbatch that have their own setting; then options that a sweep sets itself.
_OPTIONS_WITH_SETTING = {
    "array": "cluster.jobs",
    "partition": "cluster.partition",
    "account": "cluster.account",
    "time": "cluster.time",
    "cpus-per-task": "cluster.cpus",
    "mem": "cluster.memory",
    "nodes": "cluster.nodes",
    "signal": "cluster.warning_s",
}
_RESERVED_OPTIONS = re.compile(
    "chdir|dependency|error|job-name|(no-)?requeue|ntasks(-per-node)?|open-mode|output|parsable|wrap"
)


def known_keys() -> list[str]:
    """Return the keys of the settings of all kinds of cluster, such as ``cluster.jobs``."""
    names = dict.fromkeys(field.name for kind in _CLUSTER_TYPES.values() for field in fields(kind))
    return [f"{GROUP}.{name}" for name in names if name != "name"]


def is_cluster_override(override: str) -> bool:
    """Whether an override sets where jobs run, such as ``cluster.jobs=4`` and ``hydra/launcher=joblib``."""
    return re.match(r"(cluster|hydra[/.]launcher)[/.=]", override) is not None


def read_cluster(
    overrides: Sequence[str], config_dir: Path | None = None
) -> LocalCluster | SlurmCluster | HydraLauncher:
    """Read the cluster that the overrides choose, by default local. A UsageError names the key and what to do.

    A user's file in the folder ``cluster`` of ``config_dir`` may include one of ours with ``defaults: [slurm]``.
    """
    parsed = parse_overrides(list(overrides), config_dir)
    for override in parsed:
        if override.is_sweep_override():
            raise UsageError(f"{override.input_line}: a sweep runs on one cluster; give one value")
    if launcher := [override for override in overrides if override.startswith("hydra")]:
        for other in overrides:
            if other not in launcher:
                raise UsageError(f"{other}: has no effect with Hydra's launcher ({launcher[0]}); leave one of them out")
        compose_with_hydra(launcher, config_dir)
        return HydraLauncher(tuple(launcher))
    known = options(GROUP, config_dir)
    name = str(next((o.value() for o in reversed(parsed) if o.key_or_group == GROUP), "local"))
    if name not in known:
        raise unknown_name(GROUP, name, known, "clusters")
    option = read_yaml(known[name])
    if "defaults" in option:  # use Hydra only if needed, because it is slow
        option = compose_option(GROUP, name, config_dir)
    node: dict[str, Any] = dict(OmegaConf.to_container(option, resolve=True))  # type: ignore[arg-type]
    cluster_type = _CLUSTER_TYPES.get(str(node.get("name")))
    if cluster_type is None:
        raise UsageError(f"{known[name]}: name must be {' or '.join(_CLUSTER_TYPES)}")
    for override in parsed:
        if override.key_or_group != GROUP:
            _set_key(node, override.key_or_group.removeprefix(f"{GROUP}."), override.value())
    if isinstance(node.get("time"), int):  # YAML turns 8:00:00 into seconds; sbatch takes a number as minutes
        line = "write hours, minutes and seconds, as in 8:00:00; in a YAML file put it in quotes: '8:00:00'"
        raise UsageError(f"{GROUP}.time={node['time']}: {line}")
    cluster = read_dataclass(cluster_type, node, f"{GROUP}.")
    if isinstance(cluster, SlurmCluster):
        _check_slurm(cluster)
    return cluster


def _set_key(node: dict[str, Any], key: str, value: Any) -> None:
    """Set a key in place. The key ``directives.NAME`` adds a directive."""
    first, _, rest = key.partition(".")
    if rest and first == "directives":
        node[first] = {**node.get(first, {}), rest: value}
    else:
        node[key] = value


def _check_slurm(cluster: SlurmCluster) -> None:
    """Raise UsageError if a value for sbatch has a wrong form. No value can then inject another option."""
    forms = {
        "partition": (_NAME_PATTERN, "gpu"),
        "account": (_NAME_PATTERN, "my_project"),
        "time": (r"\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}", "8:00:00"),
        "memory": (r"\d+[KMGT]?", "16G"),
    }
    for key, (pattern, example) in forms.items():
        value = getattr(cluster, key)
        if value is not None and not re.fullmatch(pattern, value, re.ASCII):
            raise UsageError(f"{GROUP}.{key}={value!r}: write it as sbatch does, such as {GROUP}.{key}={example}")
    for name, value in cluster.directives.items():
        where = f"{GROUP}.directives.{name}={as_written(value)}"
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise UsageError(f"{where}: the name must be that of a long option of sbatch, without dashes")
        if name in _OPTIONS_WITH_SETTING:
            raise UsageError(f"{where}: set {_OPTIONS_WITH_SETTING[name]} instead")
        if _RESERVED_OPTIONS.fullmatch(name):
            raise UsageError(f"{where}: the sweep sets this option itself; leave it out")
        if not isinstance(value, str | int | float | bool) or not str(value).isprintable():
            raise UsageError(f"{where}: give one value in one line, or true for an option without a value")
    for command in cluster.setup:
        if "\n" in command or "\0" in command:
            raise UsageError(f"{GROUP}.setup: {command!r} has several lines; make it several entries")
