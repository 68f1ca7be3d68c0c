"""A user's own models, data and methods: modules named by ``extensions=[their.module]``.

Such a module holds any of the dicts MODELS (name -> nn.Module class), DATA (name -> function that gives the
data) and METHODS (name -> Tableau), of the same form as ours. Their settings have no dataclass: the keys are
checked against the signature of the class or function.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from odebench.errors import UsageError, did_you_mean, unknown_name

# Kind -> (one, many) of it in words.
_WORDS = {"MODELS": ("model", "models"), "DATA": ("data", "data"), "METHODS": ("solver", "solvers")}

# Parameters that are no settings: what the data fix, and the training's seed.
SUPPLIED = {
    "MODELS": ("in_channels", "image_size", "num_classes", "shape", "num_features", "span", "feature_means"),
    "DATA": ("seed",),
}


def find(kind: str, name: str, own: Mapping[str, Any], extensions: Sequence[str]) -> object:
    """What ``name`` stands for: ours first, then the extensions' in their order.

    ``kind`` is MODELS, DATA or METHODS. UsageError for a module that cannot be imported or a name that nobody
    has.
    """
    if name in own:
        return own[name]
    for module in extensions:
        if name in (theirs := _dict_of(module, kind)):
            return theirs[name]
    one, many = _WORDS[kind]
    raise unknown_name(one, name, names(kind, own, extensions), many)


def names(kind: str, own: Mapping[str, Any], extensions: Sequence[str]) -> list[str]:
    """All names of a kind, ours first."""
    return list(dict.fromkeys([*own, *(name for module in extensions for name in _dict_of(module, kind))]))


def _dict_of(module: str, kind: str) -> Mapping[str, Any]:
    try:
        found = getattr(importlib.import_module(module), kind, {})
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise UsageError(
                f"extensions: no module {module}; install its package, or put its folder on PYTHONPATH", "extensions"
            ) from error
        raise UsageError(f"extensions: {module} needs {error.name}, which is not installed", "extensions") from error
    except ValueError as error:
        raise UsageError(f"extensions: {module!r} is no module's name", "extensions") from error
    if not isinstance(found, Mapping):
        line = f"extensions: {module}.{kind} must be a dict from name to {_WORDS[kind][0]}"
        raise UsageError(line, "extensions")
    return found


def check_options(kind: str, name: str, target: object, options: Mapping[str, Any], where: str) -> None:
    """UsageError where ``target`` cannot be called with ``options``; ``where`` is e.g. ``model.``."""
    if not callable(target):
        raise UsageError(f"extensions: {kind}[{name!r}] cannot be called", "extensions")
    supplied = SUPPLIED.get(kind, ())
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
