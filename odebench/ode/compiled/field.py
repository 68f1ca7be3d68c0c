"""The vector field as a function of all tensors that get gradients, for ``torch.func``."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from odebench.ode.noise import referenced_objects
from odebench.ode.problem import StateLayout


class GraphField(NamedTuple):
    """f on flat states inside a graph. one_sided, math: see ``SolvePlan`` (``compile_math``)."""

    f: Callable[..., Any]
    layout: StateLayout
    one_sided: bool
    math: str

    def time(self, t: Tensor, y: Tensor, inward: Tensor | None) -> Tensor:
        """The float64 time t as f gets it; inward: the direction into the step, if t is an end of it."""
        time = t.to(y.dtype)
        if self.one_sided and inward is not None:
            time = torch.nextafter(time, time + inward.to(y.dtype))
        return time

    def at(self, t: Tensor, y: Tensor, args: list[Tensor], inward: Tensor | None = None) -> Tensor:
        """f [N] at y [N] and t, inward: see ``time``."""
        return self.layout.evaluate_flat(self.f, self.time(t, y, inward), y, args)


def modules_of(functions: Iterable[Callable[..., Any]]) -> tuple[nn.Module, ...]:
    """The modules that the functions refer to; of a module's method also this module, which it may call."""
    found = [x for f in functions for x in (getattr(f, "__self__", None), *(held for _, held in referenced_objects(f)))]
    return tuple(dict.fromkeys(x for x in found if isinstance(x, nn.Module)))


class FieldModule(nn.Module):
    """f as a module of the modules that it refers to, so that ``functional_call`` can replace their parameters."""

    def __init__(self, f: Callable[..., Any], modules: Sequence[nn.Module]) -> None:
        super().__init__()
        if isinstance(f, nn.Module):
            # It may hold functions of other modules, as an AugmentedField does.
            modules = modules_of(x for xs in vars(f).values() if isinstance(xs, tuple) for x in xs)
        self.f = f
        self.referenced = nn.ModuleList(modules)

    def forward(self, *inputs: Any) -> Any:
        """f(t, y, *args)."""
        return self.f(*inputs)


class UsedParameters:
    """The parameters that f uses and that require a gradient, found again in later solves without evaluating f.

    module: see ``FieldModule``. names: of the parameters.
    """

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        self.names = names
        layers = module.named_modules()
        slots = {f"{path}.{key}".lstrip("."): (x._parameters, key) for path, x in layers for key in x._parameters}
        self._used = [slots[name] for name in names]
        self._all = list(slots.values())
        self._children = [(x._modules, dict(x._modules)) for x in module.modules()]
        self._require_grad = self._find_require_grad()

    def _find_require_grad(self) -> list[bool]:
        return [(x := tensors.get(key)) is not None and x.requires_grad for tensors, key in self._all]

    def tensors(self) -> list[Tensor] | None:
        """The parameters as they are now; None if a module was replaced, or others require a gradient than before."""
        if any(now != before for now, before in self._children) or self._find_require_grad() != self._require_grad:
            return None
        found = [tensors[key] for tensors, key in self._used]
        return [x for x in found if x is not None]


def names_of(parameters: Sequence[Tensor], f: Any) -> tuple[str, ...] | None:
    """Return the names of parameters in the module f; None if f is no module, or does not own all of them."""
    if not isinstance(f, nn.Module):
        return None
    names = {id(parameter): name for name, parameter in f.named_parameters()}
    return tuple(names[id(p)] for p in parameters) if all(id(p) in names for p in parameters) else None


def slots_of(f: nn.Module, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """For each of these parameters of f, one name of every place where a module of f holds it.

    ``functional_call`` itself would find tied parameters by all their names. But in a module that has several names, it
    leaves the tensors that it was given.
    """
    slots: dict[int, list[str]] = {id(f.get_parameter(name)): [] for name in names}
    for path, module in f.named_modules():
        for key, parameter in module._parameters.items():
            if id(parameter) in slots:
                slots[id(parameter)].append(f"{path}.{key}".lstrip("."))
    return tuple(map(tuple, slots.values()))


def rate_of_inputs(
    f: nn.Module,
    layout: StateLayout,
    slots: tuple[tuple[str, ...], ...],
    arg_idx: tuple[int, ...],
    t: Tensor,
    args: list[Tensor],
) -> Callable[..., Tensor]:
    """Return dy/dt [N] at t as a function of y [N] and the tensors that get gradients, for ``torch.func.vjp``.

    Those are parameters of the module f, then the arguments at the positions ``arg_idx`` of ``args``. slots: see
    ``slots_of``.
    """

    def rate(y: Tensor, *inputs: Tensor) -> Tensor:
        all_args = list(args)
        for i, value in zip(arg_idx, inputs[len(slots) :], strict=True):
            all_args[i] = value
        values = inputs[: len(slots)]
        parameters = {name: value for names, value in zip(slots, values, strict=True) for name in names}

        def call(*inputs_of_f: Any) -> Any:
            return functional_call(f, parameters, inputs_of_f, tie_weights=False)

        return layout.evaluate_flat(call, t, y, all_args)

    return rate
