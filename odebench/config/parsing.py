"""Parse plain values into dataclasses. Types and ranges are checked strictly; every error names the key.

Annotations can be ``float int bool str``, ``dict``, ``tuple[X, ...]``, ``tuple[X, X]``, ``Literal``, ``X | None``
and ``Annotated[X, Range(...)]``.
"""

import sys
import types
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from odebench.errors import UsageError, unknown_setting

# Examples in error messages, by key; other keys get a general example.
_EXAMPLES = {
    "tol": "1e-3",
    "eval_tol": "1e-5",
    "rtol": "1e-3",
    "atol": "1e-3",
    "seed": "0",
    "lr": "0.1",
    "average": "0.999",
    "extensions": "[my_module]",
    "tags": "[baseline]",
}


def read_dataclass(kind: type, node: Mapping[str, Any], prefix: str) -> Any:
    """Create a dataclass from a mapping. prefix: put before the keys in errors, e.g. ``trainer.``."""
    return kind(**read_fields(kind, node, prefix))


def read_fields(kind: type, node: Mapping[str, Any], prefix: str, skip: Collection[str] = ()) -> dict[str, Any]:
    """Convert the values of a mapping to the types of a dataclass's fields.

    The keys must be exactly these fields, without those in ``skip``.
    """
    hints = get_type_hints(kind, include_extras=True)
    known = [field.name for field in fields(kind) if field.name not in skip]
    for key in node:
        if key not in known:
            raise unknown_setting(f"{prefix}{key}", [f"{prefix}{name}" for name in known])
    for key in known:
        if key not in node:
            line = f"{prefix}{key} is missing; add it to the YAML file of the chosen option"
            raise UsageError(line, f"{prefix}{key}")
    return {key: read_value(hints[key], f"{prefix}{key}", node[key]) for key in known}


def read_value(annotation: Any, key: str, value: Any) -> Any:
    """Check ``value`` against ``annotation`` and return it. Lists become tuples; integers become floats if needed."""
    kind, *arguments = [get_origin(annotation), *get_args(annotation)]
    if kind is Annotated:
        number = read_value(arguments[0], key, value)
        if problem := arguments[1].violation(number):
            raise _wrong(key, value, problem)
        return number
    if kind in (Union, types.UnionType):
        return _read_union(arguments, key, value)
    if kind is Literal:
        if type(value) is not str or value not in arguments:
            raise _wrong(key, value, f"must be {' or '.join(map(str, arguments))}")
        return value
    if kind is tuple:
        return _read_tuple(arguments, key, value)
    if annotation is float:
        if type(value) in (int, float) and abs(value) <= sys.float_info.max:
            return float(value)
    elif (kind or annotation) is type(value):
        if type(value) is int and abs(value) >= 2**63:
            raise _wrong(key, value, "must be below 2^63")
        return value
    raise _wrong(key, value, _needed(kind or annotation, key))


def _wrong(key: str, value: Any, problem: str) -> UsageError:
    """Return the error for the value of a setting, or of one entry of a list, such as ``optim.betas[0]``."""
    return UsageError(f"{key}={as_written(value)}: {problem}", key.partition("[")[0])


def _read_union(choices: list[Any], key: str, value: Any) -> Any:
    """Try None and literals first, then the one other type. The error lists all of them."""
    literals: list[str] = []
    rest: Any = None
    for choice in choices:
        if choice is types.NoneType:
            literals.append("null")
            if value is None:
                return None
        elif get_origin(choice) is Literal:
            literals += get_args(choice)
            if type(value) is str and value in get_args(choice):
                return value
        else:
            rest = choice
    try:
        return read_value(rest, key, value)
    except UsageError as error:
        raise UsageError(f"{error}, or {' or '.join(literals)}", *error.settings) from None


def _read_tuple(arguments: list[Any], key: str, value: Any) -> tuple[Any, ...]:
    if type(value) is not list:
        raise _wrong(key, value, f"a list is needed, such as {key}={_EXAMPLES.get(key, '[1,2]')}")
    if arguments[-1] is Ellipsis:
        arguments = [arguments[0]] * len(value)
    if len(arguments) != len(value):
        raise _wrong(key, value, f"{len(arguments)} entries are needed")
    return tuple(read_value(a, f"{key}[{i}]", v) for i, (a, v) in enumerate(zip(arguments, value, strict=True)))


def _needed(kind: Any, key: str) -> str:
    example = _EXAMPLES.get(key.rpartition(".")[2])
    if "[" in key:
        return {float: "a number is needed", int: "a whole number is needed"}.get(kind, "text is needed")
    if kind is float:
        return f"a number is needed, such as {key}={example or '0.5'}"
    if kind is int:
        return f"a whole number is needed, such as {key}={example or '10'}"
    if kind is bool:
        return "must be true or false"
    if kind is str:
        return f"text is needed; a number in quotes is text, as in \"{key}='1'\""
    return "a mapping is needed"


def as_written(value: Any) -> str:
    """Format ``value`` as a user writes it in YAML or on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(as_written(entry) for entry in value) + "]"
    return str(value)
