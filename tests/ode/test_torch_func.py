"""Solves inside torch.func and forward-mode differentiation: those that would lose a derivative raise errors.

Tests of those that work are in test_gradient_modes.
"""

import pytest
import torch
from torch.autograd import forward_ad

from odebench.ode import METHODS, Rows, odeint_adjoint, solve
from odebench.ode.methods.implicit import ImplicitTableau

W = torch.tensor([0.3, 0.8], dtype=torch.float64)
ONES = torch.ones(2, dtype=torch.float64)
HAND_WRITTEN = ("checkpoint", "adjoint", "interpolated_adjoint", "reversible")


def end(w, **how):
    """Solve with w in the closure of f only."""
    return solve(lambda t, y: -w * torch.sin(y), ONES, [0.0, 0.3, 1.0], **how).y.sum()


def jvp_in_a_dual_level(function, w):
    """torch.func.jvp imports for seconds when it is called first."""
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(w, torch.ones_like(w)))).tangent


TRANSFORMS = {
    "grad": lambda function, w: torch.func.grad(function)(w).sum(),
    "forward": jvp_in_a_dual_level,
    "vmap": lambda function, w: torch.func.vmap(function)(torch.stack([w, w])),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("mode", HAND_WRITTEN)
def test_hand_written_backward_passes_raise(mode, transform):
    method = "reversible_rk4" if mode == "reversible" else "rk4"
    with pytest.raises(ValueError, match=f"gradient='{mode}' does not support torch.func.*use gradient='backprop'"):
        TRANSFORMS[transform](lambda w: end(w, method=method, steps=4, gradient=mode), W)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    "method",
    [name for name, method in METHODS.items() if isinstance(method, ImplicitTableau)] + ["rodas4", "scipy_rk45"],
)
def test_methods_that_torch_cannot_differentiate_through_raise(method, transform):
    with pytest.raises(ValueError, match=f"method {method} does not support torch.func"):
        TRANSFORMS[transform](lambda w: end(w, method=method, steps=None if "scipy" in method else 4), W)


def test_a_compiled_step_is_refused():
    with pytest.raises(ValueError, match=r"compile=True does not support torch.func"):
        torch.func.grad(lambda w: end(w, compile=True))(W)


@pytest.mark.parametrize("how", [{}, {"method": "adams"}], ids=["dopri5", "adams"])
def test_vmap_over_a_closure_raises_for_adaptive_steps(how):
    with pytest.raises(ValueError, match=r"torch.func.vmap.*give steps or step_size"):
        TRANSFORMS["vmap"](lambda w: end(w, **how), W)


@pytest.mark.parametrize("method", ["implicit_adams", "alf", "reversible_heun", "reversible_dopri5"])
def test_vmap_over_steps_that_read_values_raises(method):
    with pytest.raises(ValueError, match=f"method {method} reads values that torch.func.vmap hides"):
        TRANSFORMS["vmap"](lambda w: end(w, method=method, steps=4), W)


def test_vmap_over_a_solve_with_an_event_raises():
    with pytest.raises(ValueError, match=r"events read values that torch.func.vmap hides"):
        TRANSFORMS["vmap"](lambda w: end(w, method="rk4", steps=4, event=lambda t, y: y.sum() - 9.0), W)


def rows(w, **how):
    return solve(
        lambda t, y, w: -w * torch.sin(y),
        ONES[:, None],
        [0.0, 0.3, 1.0],
        args=(Rows(w[:, None]),),
        stepping="per_sample",
        **how,
    ).y.sum()


def test_per_sample_stepping_under_transforms():
    reverse = torch.func.grad(rows)(W).sum()
    torch.testing.assert_close(jvp_in_a_dual_level(rows, W), reverse, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"gradient='checkpoint' does not support torch.func"):
        torch.func.grad(lambda w: rows(w, gradient="checkpoint"))(W)
    with pytest.raises(ValueError, match=r"does not support torch.func.vmap; make the batch its rows"):
        TRANSFORMS["vmap"](rows, W)


@pytest.mark.parametrize("stepping", ["shared", "per_sample"])
def test_times_have_derivatives(stepping):
    def final(t):
        return (solve(lambda t, y: -y, ONES[:, None], t, stepping=stepping, steps=10).y ** 2).sum()

    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    (wanted,) = torch.autograd.grad(final(leaf := times.clone().requires_grad_()), leaf)
    torch.testing.assert_close(torch.func.grad(final)(times), wanted, rtol=1e-12, atol=0)
    stretched = jvp_in_a_dual_level(lambda scale: final(scale * times), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(stretched, wanted @ times, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"t differs between the samples of torch.func.vmap"):
        TRANSFORMS["vmap"](final, times)


def test_odeint_adjoint_is_refused():
    def final(w):
        return odeint_adjoint(lambda t, y: -w * y, ONES, torch.tensor([0.0, 1.0]), method="rk4")[-1].sum()

    with pytest.raises(ValueError, match=r"\(odeint\)"):
        torch.func.grad(final)(W)


def test_without_gradients_every_mode_is_allowed():
    with torch.no_grad():
        mapped = TRANSFORMS["vmap"](lambda w: end(w, method="rk4", steps=4, gradient="adjoint"), W)
    torch.testing.assert_close(mapped, end(W, method="rk4", steps=4).expand(2), rtol=1e-13, atol=0)


@pytest.mark.parametrize("how", [{}, {"stepping": "per_sample"}])
def test_events_have_derivatives_in_every_kind_of_differentiation(how):
    def when_and_where(rate):
        solution = solve(
            lambda t, y: -rate * y,
            torch.ones(1, 1, dtype=torch.float64),
            [0.0, 9.0],
            event=lambda t, y: y.reshape(-1) - 0.5 * rate,
            rtol=1e-9,
            atol=1e-9,
            **how,
        )
        return solution.events[0].t[0], solution.events[0].y.reshape(-1)[0]

    # y = exp(-a t) meets a / 2 at t = -ln(a / 2) / a.
    rate = torch.tensor(0.7, dtype=torch.float64)
    slope = torch.log(rate / 2) / rate**2 - 1 / rate**2
    _, tangents = torch.func.jvp(when_and_where, (rate,), (torch.ones_like(rate),))
    torch.testing.assert_close(torch.stack(tangents), torch.stack([slope, torch.full_like(slope, 0.5)]))
    torch.testing.assert_close(torch.func.grad(lambda a: when_and_where(a)[0])(rate), slope)
    with forward_ad.dual_level():
        dual = when_and_where(forward_ad.make_dual(rate, torch.ones_like(rate)))[0]
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, slope)
