"""ODE states augmented with integrals along the solution.

Examples are log-determinants (Chen et al. 2018, section 4; Grathwohl et al. 2019) and regularisation terms.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odebench.ode.noise import refuse_layers_in_training_mode


class FieldEvaluation:
    """One evaluation of a vector field, with the derivatives that integrands need.

    field: f(t, z, *args). t: scalar, or [B]. z: [B, *shape]. noise: a tensor with the shape of z, or None.

    In compiled code, a method ``vjp(t, z, v)`` of the field, which returns f and v^T df/dz, replaces automatic
    differentiation.

    The derivatives also work under no_grad; where gradients are enabled, they can be differentiated. Rows of z must be
    independent: row i of f may depend only on row i of z.
    """

    def __init__(
        self,
        field: Callable[..., Tensor],
        t: Tensor,
        z: Tensor,
        noise: Tensor | None = None,
        args: tuple[Any, ...] = (),
    ) -> None:
        if noise is not None and noise.shape != z.shape:
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, but the state has {tuple(z.shape)}; with stepping='per_sample' "
                "pass the noise to the solve as args=(Rows(noise),)"
            )
        self.t, self.z, self.noise = t, z, noise
        self._field, self._args = field, args
        self._dz: Tensor | None = None
        self._vjp: Callable[[Tensor], Tensor] | None = None
        self._noise_vjp: Tensor | None = None

    def field(self, t: Tensor, z: Tensor) -> Tensor:
        """Evaluate f(t, z); under autocast the result still has the dtype of z."""
        return self._field(t, z, *self._args).to(z.dtype)

    @property
    def dz(self) -> Tensor:
        """f(t, z), with the shape of z."""
        if self._dz is None:
            if self.noise is None:
                self._dz = self.field(self.t, self.z)
            elif self._vjp_is_compiled:
                self.noise_vjp()
            else:
                self._evaluate_with_vjp()
        assert self._dz is not None
        return self._dz

    def noise_vjp(self) -> Tensor:
        """noise^T df/dz, with the shape of z; it is computed only once."""
        if self.noise is None:
            raise ValueError(
                "this integrand needs noise; pass it to AugmentedField, or to the solve as args=(Rows(noise),)"
            )
        if self._noise_vjp is None:
            if self._vjp_is_compiled:
                self._dz, self._noise_vjp = self._field.vjp(  # type: ignore[attr-defined]
                    self.t, self.z, self.noise, *self._args
                )
            else:
                self._noise_vjp = self._evaluate_with_vjp()(self.noise)
        return self._noise_vjp

    @property
    def _vjp_is_compiled(self) -> bool:
        # torch cannot compile its own derivatives inside a loop over steps.
        return torch.compiler.is_compiling() and hasattr(self._field, "vjp")

    def trace(self) -> Tensor:
        """The exact trace of df/dz [B].

        If the field has a method ``divergence(t, z)``, which returns f and the trace, that is used. Otherwise the trace
        takes a batch of vector-Jacobian products, one for each dimension.
        """
        if hasattr(self._field, "divergence"):
            return self._closed_form_trace()
        vjp = self._evaluate_with_vjp()
        num_dims = self.z.shape[1:].numel()
        basis = torch.eye(num_dims, dtype=self.z.dtype, device=self.z.device)
        unit_vectors = basis.view(num_dims, 1, *self.z.shape[1:]).expand(num_dims, *self.z.shape)
        rows = torch.func.vmap(vjp)(unit_vectors)
        return rows.flatten(2).diagonal(dim1=0, dim2=2).sum(-1)

    def _closed_form_trace(self) -> Tensor:
        def divergence(z: Tensor) -> tuple[Tensor, Tensor]:
            dz, trace = self._field.divergence(self.t, z, *self._args)  # type: ignore[attr-defined]
            return dz.to(z.dtype), trace.to(z.dtype)

        if self.noise is None or self._vjp_is_compiled:
            self._dz, trace = divergence(self.z)
        else:
            self._dz, trace, self._vjp = _value_and_vjp(divergence, self.z)
        return trace

    def _evaluate_with_vjp(self) -> Callable[[Tensor], Tensor]:
        """Return the function v -> v^T df/dz; also evaluates f."""
        if self._vjp is None:
            self._dz, _, self._vjp = _value_and_vjp(lambda z: (self.field(self.t, z), z), self.z)
        return self._vjp


def _value_and_vjp(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Return f and aux, the two results of function(z), and the map v -> v^T df/dz.

    The map may be called repeatedly, and inside vmap.
    """
    # torch.func does not work with hooks on saved tensors. torch.autograd.grad does not work in compiled code, nor in
    # inference mode.
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        results: Any = torch.func.vjp(function, z, has_aux=True)
        dz, vjp_function, aux = results
        return dz, aux, lambda v: vjp_function(v)[0]
    keeps_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_()
        dz, aux = function(z)

    def vjp(v: Tensor) -> Tensor:
        if not dz.requires_grad:
            return torch.zeros_like(v)
        return torch.autograd.grad(dz, z, v, retain_graph=True, create_graph=keeps_graph, materialize_grads=True)[0]

    return (dz, aux, vjp) if keeps_graph else (dz.detach(), aux.detach(), vjp)


# A function from an evaluation of the field to one number for each row [B].
Integrand = Callable[[FieldEvaluation], Tensor]


class AugmentedField(nn.Module):
    """The vector field of the state (z, integral_1, ..., integral_n), z [B, *shape] and each integral [B].

    field: f(t, z, *args), the field of the state z alone. integrands: the integrands of the n integrals, in order.
    noise: a tensor with the shape of z, for the integrands that need noise. It must stay the same within a solve, or it
    disturbs error control.

    A solve calls this module with (t, state, noise, *args). The noise can also be passed to the solve, as args=(noise,)
    or args=(noise, *field_args); unless it is None, it replaces the constructor's noise. With stepping="per_sample",
    wrap it in ``Rows``, so that each row keeps its own noise. An ``AugmentedField`` that is created once and gets its
    noise in args is compiled only once.
    """

    def __init__(
        self, field: Callable[..., Tensor], integrands: Sequence[Integrand], noise: Tensor | None = None
    ) -> None:
        super().__init__()
        if not isinstance(field, nn.Module):
            # The solver checks a module's submodules, and would not find a function or a method among them.
            refuse_layers_in_training_mode(field)
        self.field, self.integrands, self.noise = field, tuple(integrands), noise

    def forward(
        self, t: Tensor, state: tuple[Tensor, ...], noise: Tensor | None = None, *args: Any
    ) -> tuple[Tensor, ...]:
        """The derivative of the state; t: scalar, or [B]."""
        evaluation = FieldEvaluation(self.field, t, state[0], self.noise if noise is None else noise, args)
        # Evaluate the field last: an integrand may already have computed it as a by-product.
        integrals = [integrand(evaluation) for integrand in self.integrands]
        return evaluation.dz, *integrals


def zero_integrals(z0: Tensor, count: int) -> tuple[Tensor, ...]:
    """The initial values of ``count`` integrals: zeros, each [B]."""
    return tuple(z0.new_zeros(len(z0)) for _ in range(count))


def exact_trace(evaluation: FieldEvaluation) -> Tensor:
    """tr df/dz [B]."""
    return evaluation.trace()


def hutchinson_trace(evaluation: FieldEvaluation) -> Tensor:
    """noise^T (df/dz) noise [B]. Its mean over noise with covariance I is the trace (Hutchinson 1990)."""
    vjp = evaluation.noise_vjp()
    assert evaluation.noise is not None
    return (vjp * evaluation.noise).flatten(1).sum(1)
