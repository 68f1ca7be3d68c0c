"""Plugins: users' models, data sets and methods, in modules named by ``extensions=[their.module]``.

Such a module holds any of the dicts MODELS (name -> nn.Module class), DATA (name -> function that returns the data)
and METHODS (name -> Tableau), like odebench's own. Their settings have no dataclass: the keys are checked against the
signature of the class or function.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from odebench.config.groups import PLURALS
from odebench.errors import UsageError, did_you_mean, unknown_name

_GROUPS = {"MODELS": "model", "DATA": "data", "METHODS": "solver"}

# Parameters that are not settings: they follow from the data, or are the training's seed.
_NOT_SETTINGS = {
    "MODELS": ("in_channels", "image_size", "num_classes", "shape", "num_features", "span", "feature_means"),
    "DATA": ("seed",),
}


def lookup(kind: str, name: str, builtin: Mapping[str, Any], extensions: Sequence[str]) -> object:
    """The object called ``name``: odebench's first, then those of the plugins in their order.

    ``kind`` is MODELS, DATA or METHODS. UsageError for a module that cannot be imported and for an
    unknown name.
    """
    if name in builtin:
        return builtin[name]
    for module in extensions:
        if name in (found_here := _plugin_dict(module, kind)):
            return found_here[name]
    group = _GROUPS[kind]
    raise unknown_name(group, name, known_names(kind, builtin, extensions), PLURALS[group])


def known_names(kind: str, builtin: Mapping[str, Any], extensions: Sequence[str]) -> list[str]:
    """All names of a kind, odebench's first."""
    return list(dict.fromkeys([*builtin, *(name for module in extensions for name in _plugin_dict(module, kind))]))


def _plugin_dict(module: str, kind: str) -> Mapping[str, Any]:
    if not all(module.split(".")) or "\0" in module:  # import_module would take ".name" for a relative import
        line = (
            f"extensions: {module!r} is no module's name; write it as Python's import does, such as my_package.models"
        )
        raise UsageError(line, "extensions")
    try:
        found = getattr(importlib.import_module(module), kind, {})
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise UsageError(
                f"extensions: no module {module}; install its package, or put its folder on PYTHONPATH", "extensions"
            ) from error
        raise UsageError(f"extensions: {module} needs {error.name}, which is not installed", "extensions") from error
    if not isinstance(found, Mapping):
        line = f"extensions: {module}.{kind} must be a dict from name to {_GROUPS[kind]}"
        raise UsageError(line, "extensions")
    return found


def check_signature(kind: str, name: str, target: object, options: Mapping[str, Any], where: str) -> None:
    """UsageError if ``target`` cannot be called with ``options``; ``where`` is e.g. ``model.``."""
    if not callable(target):
        raise UsageError(f"extensions: {kind}[{name!r}] cannot be called", "extensions")
    supplied = _NOT_SETTINGS.get(kind, ())
    parameters = inspect.signature(cast(Callable[..., Any], target)).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named if p.name not in supplied]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in options:
        if key not in known and not takes_any:
            hint = did_you_mean(f"{where}{key}", [f"{where}{k}" for k in known])
            takes = hint or f"; {name} takes {', '.join(known)}"
            raise UsageError(f"unknown setting {where}{key}{takes}", f"{where}{key}")
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name in known and parameter.name not in options:
            line = f"{where}{parameter.name} is missing; {name} needs it, and its YAML file names it"
            raise UsageError(line, f"{where}{parameter.name}")
