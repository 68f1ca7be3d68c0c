"""Plugins: users' models, data sets and methods, in modules named by ``extensions=[their.module]``.

Such a module has one or more of the dicts MODELS (name -> nn.Module class), DATA (name -> function that returns the
data) and METHODS (name -> Tableau). The settings of a plugin have no dataclass: their keys are checked against the
signature of the class or function.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from odebench.config.groups import PLURALS
from odebench.errors import UsageError, did_you_mean, unknown_name

# Group of settings -> the name of the dict that holds a plugin's options for this group.
_DICTS = {"model": "MODELS", "data": "DATA", "solver": "METHODS"}

# Parameters that are not settings: their values come from the data or from the training's seed.
_NOT_SETTINGS = {
    "model": ("in_channels", "image_size", "num_classes", "shape", "num_features", "span", "feature_means"),
    "data": ("seed",),
}


def lookup(group: str, name: str, builtin: Mapping[str, Any], extensions: Sequence[str]) -> object:
    """Find the model, data set or method called ``name``: first in odebench, then in each plugin, in their order.

    group: model, data or solver. Raises UsageError for an unknown name, or a module that cannot be imported.
    """
    if name in builtin:
        return builtin[name]
    for module in extensions:
        if name in (plugin := _plugin_dict(module, group)):
            return plugin[name]
    raise unknown_name(group, name, known_names(group, builtin, extensions), PLURALS[group])


def known_names(group: str, builtin: Mapping[str, Any], extensions: Sequence[str]) -> list[str]:
    """Return all option names of a group, odebench's first."""
    return list(dict.fromkeys([*builtin, *(name for module in extensions for name in _plugin_dict(module, group))]))


def _plugin_dict(module: str, group: str) -> Mapping[str, Any]:
    if not all(module.split(".")) or "\0" in module:  # import_module would take ".name" for a relative import
        line = f"extensions: {module!r} is no module name; write it as in Python's import, such as my_package.models"
        raise UsageError(line, "extensions")
    try:
        found = getattr(importlib.import_module(module), _DICTS[group], {})
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            line = f"no module {module}; install its package, or put its folder on PYTHONPATH"
        else:
            line = f"{module} needs {error.name}, which is not installed"
        raise UsageError(f"extensions: {line}", "extensions") from error
    if not isinstance(found, Mapping):
        raise UsageError(f"extensions: {module}.{_DICTS[group]} must be a dict from name to {group}", "extensions")
    return found


def check_signature(group: str, name: str, target: object, options: Mapping[str, Any]) -> None:
    """Raise UsageError if ``target`` cannot be called with ``options`` as keyword arguments."""
    if not callable(target):
        raise UsageError(f"extensions: {_DICTS[group]}[{name!r}] cannot be called", "extensions")
    parameters = inspect.signature(cast(Callable[..., Any], target)).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named if p.name not in _NOT_SETTINGS[group]]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in options:
        if key not in known and not takes_any:
            hint = did_you_mean(f"{group}.{key}", [f"{group}.{k}" for k in known])
            takes = hint or f"; {name} takes {', '.join(known)}"
            raise UsageError(f"unknown setting {group}.{key}{takes}", f"{group}.{key}")
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name in known and parameter.name not in options:
            key = f"{group}.{parameter.name}"
            raise UsageError(f"{key} is missing, and {name} needs it; add it to the YAML file of {name}", key)
