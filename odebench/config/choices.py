"""Read the chosen option of a group of settings, such as the model."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_type_hints

from odebench.config.files import options
from odebench.config.groups import PLURALS
from odebench.config.parsing import as_written, read_dataclass, read_value
from odebench.config.plugins import check_signature, known_names, lookup
from odebench.config.schema import CHOICES, PluginSettings
from odebench.config.schema.solver import NO_SOLVER, SolverSettings
from odebench.config.schema.training import TrainerSettings
from odebench.errors import UsageError, unknown_name
from odebench.ode.methods import METHODS


def read_choice(group: str, node: Mapping[str, Any], extensions: Any, config_dir: str | None) -> Any:
    """Read the chosen option of a group.

    The settings of odebench's options are checked against a dataclass. Those of a plugin's option are checked against
    the signature of its class or function.
    """
    if group == "trainer":
        return read_dataclass(TrainerSettings, node, "trainer.")
    if group == "solver":
        return read_solver(node, extensions, config_dir)
    name, builtin = node.get("name"), CHOICES[group]
    if isinstance(name, str) and name in builtin:
        return read_dataclass(builtin[name], node, f"{group}.")
    if group not in ("model", "data"):
        raise unknown_name(group, as_written(name), builtin, PLURALS[group])
    known = known_names(group, builtin, extensions)
    if not isinstance(name, str) or name not in known:
        raise _unknown(group, name, known, extensions, config_dir)
    target = lookup(group, name, builtin, extensions)
    given = {str(key): value for key, value in node.items() if key != "name"}
    check_signature(group, name, target, given)
    return PluginSettings(name, given)


def _unknown(group: str, name: Any, known: list[str], extensions: Any, config_dir: str | None) -> UsageError:
    """Return the error for an unknown name. If a user's YAML file for it exists, the error asks for its module."""
    if config_dir is None or name not in options(group, config_dir):
        return unknown_name(group, as_written(name), known, PLURALS[group])
    line = f"its YAML file exists, but extensions={as_written(extensions)} has no {group} of that name"
    return UsageError(f"{group}={name}: {line}; add the module, as in extensions=[my_module]", group, "extensions")


def read_solver(node: Mapping[str, Any], extensions: Any, config_dir: str | None) -> SolverSettings:
    """Read the settings of a solver. Keys that only its method has are stored in ``SolverSettings.options``."""
    name = node.get("name")
    known = [*known_names("solver", METHODS, extensions), NO_SOLVER]
    if name not in known:
        raise _unknown("solver", name, known, extensions, config_dir)
    method: Any = None if name == NO_SOLVER else lookup("solver", str(name), METHODS, extensions)
    own = {key: node[key] for key in getattr(method, "options", ()) if key in node}
    hints = get_type_hints(type(method)) if own else {}
    options = {key: read_value(hints[key], f"solver.{key}", value) for key, value in own.items()}
    try:
        replace(method, **options) if options else None
    except ValueError as error:
        raise UsageError(f"solver={name}: {error}", "solver", *(f"solver.{key}" for key in options)) from error
    return read_dataclass(
        SolverSettings, {key: node[key] for key in node if key not in own} | {"options": options}, "solver."
    )


def options_of(choice: Any) -> dict[str, Any]:
    """Return the settings of a model, data set, ... without its name: the arguments of its constructor."""
    if isinstance(choice, PluginSettings):
        return dict(choice.options)
    return {field.name: getattr(choice, field.name) for field in fields(choice) if field.name != "name"}
