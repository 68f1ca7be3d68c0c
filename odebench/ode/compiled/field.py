"""The vector field as a function of all tensors that get gradients, for ``torch.func``."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from odebench.ode.problem import StateLayout


class FieldModule(nn.Module):
    """f as a module of the modules that it refers to, so that ``functional_call`` can replace their parameters."""

    def __init__(self, f: Callable[..., Any], modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.f = f
        self.referenced = nn.ModuleList(modules)

    def forward(self, *inputs: Any) -> Any:
        """f(t, y, *args)."""
        return self.f(*inputs)


def names_of(parameters: Sequence[Tensor], f: Any) -> tuple[str, ...] | None:
    """Return the names of parameters in the module f; None if f is no module, or does not own all of them."""
    if not isinstance(f, nn.Module):
        return None
    names = {id(parameter): name for name, parameter in f.named_parameters()}
    return tuple(names[id(p)] for p in parameters) if all(id(p) in names for p in parameters) else None


def rate_of_inputs(
    f: nn.Module, layout: StateLayout, names: tuple[str, ...], arg_idx: tuple[int, ...], t: Tensor, args: list[Tensor]
) -> Callable[..., Tensor]:
    """Return dy/dt [N] at t as a function of y [N] and the tensors that get gradients, for ``torch.func.vjp``.

    Those are the parameters ``names`` of the module f, then the arguments at the positions ``arg_idx`` of ``args``.
    """

    def rate(y: Tensor, *inputs: Tensor) -> Tensor:
        all_args = list(args)
        for i, value in zip(arg_idx, inputs[len(names) :], strict=True):
            all_args[i] = value
        parameters = dict(zip(names, inputs, strict=False))
        return layout.evaluate_flat(lambda *inputs_of_f: functional_call(f, parameters, inputs_of_f), t, y, all_args)

    return rate
