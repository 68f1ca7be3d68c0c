"""Complete settings in a shell, if argcomplete is installed. Imports neither torch nor Hydra."""

import argparse
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

# Commands that take cluster settings. ``resume`` takes only these.
_WITH_CLUSTER = ("sweep", "resume", "reproduce")


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell's completion request and exit. Does nothing if argcomplete is not installed."""
    try:
        import argcomplete
    except ModuleNotFoundError:
        return
    argcomplete.autocomplete(parser)


def complete_setting(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Return the candidates for completing ``prefix``: keys (``sol`` -> ``solver=``), or values (``solver=d`` -> ...).

    After a comma, as in ``solver=dopri5,ts``, only the last value is completed.
    """
    from odebench.config.files import known_keys
    from odebench.errors import UsageError

    config_dir = getattr(parsed_args, "config_dir", None)
    key, equals, value = prefix.partition("=")
    try:
        if equals:
            before, comma = value.rpartition(",")[:2]
            return [f"{key}={before}{comma}{choice}" for choice in _values(key, config_dir)]
        command = getattr(parsed_args, "command", "")
        keys = known_keys(config_dir) if command != "resume" else []
        if command in ("eval", "predict"):
            keys = ["split", *keys]
        elif command in _WITH_CLUSTER:
            from odebench.sweep import cluster

            keys = [cluster.GROUP, *cluster.known_keys(), *keys]
        return [f"{word}=" for word in keys if word != "config_dir"]
    except UsageError:
        return []


def _values(key: str, config_dir: Path | None) -> list[str]:
    from odebench.config.files import options
    from odebench.config.groups import PLURALS

    if key in PLURALS or key == "cluster":
        return list(options(key, config_dir))
    if key == "eval_solver":
        return list(options("solver", config_dir))
    if key == "split":
        from odebench.config.schema.quantities import SPLITS

        return list(SPLITS)
    if key == "device":
        return ["auto", "cpu", "cuda"]
    return _allowed_values(key)


def _allowed_values(key: str) -> list[str]:
    """Return the values that a setting's type allows: true and false, or those of a Literal; empty for other types."""
    from odebench.config.schema import CHOICES
    from odebench.config.schema.solver import SolverSettings
    from odebench.config.settings import Settings

    group, _, name = key.rpartition(".")
    single = {"": Settings, "solver": SolverSettings}
    candidates = [single[group]] if group in single else CHOICES.get(group, {}).values()
    for candidate in candidates:
        hint = get_type_hints(candidate).get(name)
        if hint is bool:
            return ["true", "false"]
        for part in (hint, *get_args(hint)):
            if get_origin(part) is Literal:
                return list(get_args(part))
    return []
