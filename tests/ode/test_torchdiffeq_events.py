"""odeint_event against torchdiffeq's."""

import math

import pytest
import torch
from torchdiffeq_comparison import LIBRARIES, largest, torchdiffeq

from odebench.ode import odeint, odeint_adjoint, odeint_event
from odebench.ode.methods import METHODS


class TestEvents:
    """A ball thrown upward, y = (height, speed), falls back to the ground at 2 v / g."""

    @staticmethod
    def fall(t, y):
        return torch.stack([y[1], torch.full_like(y[1], -10.0)])

    @staticmethod
    def fall_tuple(t, y):
        return y[1], torch.full_like(y[1], -10.0)

    @pytest.mark.parametrize("method", ["dopri5", "bosh3", "tsit5", "rk4", "midpoint", "heun3"])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_time_and_state(self, method, reverse):
        y0 = torch.tensor([1.0, 4.0], dtype=torch.float64)
        how = {
            "method": method,
            "options": {"step_size": 1e-2, "interp": "cubic"} if not METHODS[method].adaptive else None,
        }
        t0 = torch.tensor(0.5, dtype=torch.float64)
        t, y = odeint_event(
            self.fall, y0, t0, event_fn=lambda t, y: y[0], reverse_time=reverse, atol=1e-8, rtol=1e-8, **how
        )
        root = math.sqrt(16 + 20)
        assert t.item() == pytest.approx(0.5 + (4 - root if reverse else 4 + root) / 10, abs=1e-6)
        assert y.shape == (2, 2)
        assert torch.equal(y[0], y0)
        assert y[1].tolist() == pytest.approx([0, root if reverse else -root], abs=1e-5)

    @pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
    @pytest.mark.parametrize("kind", ["tensor", "tuple"])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_gradients(self, interface, kind, reverse):
        """With respect to the state, the time, and a parameter of the event, which gets none from torchdiffeq."""
        is_tuple = kind == "tuple"
        height, speed, t0, ground = wanted = [
            torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.0, 4.0, 0.5, 0.2)
        ]
        t, y = odeint_event(
            self.fall_tuple if is_tuple else self.fall,
            (height, speed) if is_tuple else torch.stack([height, speed]),
            t0,
            event_fn=lambda t, y: y[0] - ground,
            reverse_time=reverse,
            odeint_interface=odeint if interface == "odeint" else odeint_adjoint,
            **({"adjoint_params": ()} if interface == "odeint_adjoint" else {}),
        )
        last = y[1][-1] if is_tuple else y[-1, 1]
        root = (-1.0 if reverse else 1.0) * torch.sqrt(speed**2 + 20 * (height - ground))
        exact_t, exact_last = t0 + (speed + root) / 10, -root
        got, expected = (
            torch.stack(torch.autograd.grad(time + time**2 + 3 * end, wanted))
            for time, end in ((t, last), (exact_t, exact_last))
        )
        assert largest(got - expected) < 1e-5 * largest(expected)

    def test_several_functions(self):
        """The first of them that changes its sign ends the solve."""

        def event(t, y):
            return torch.stack([y[0] + 100, 1.3 - y[0], y[0]])

        t0, y0 = torch.tensor(0.0, dtype=torch.float64), torch.tensor([1.0, 4.0], dtype=torch.float64)
        (a, _), (b, _) = (run(self.fall, y0, t0, event_fn=event) for run in (torchdiffeq.odeint_event, odeint_event))
        assert b.item() == pytest.approx(a.item(), abs=1e-7)
        assert b.item() == pytest.approx((4 - math.sqrt(16 - 6)) / 10, abs=1e-7)

    def test_a_late_event(self):
        """The second time only sets the direction; it does not limit the steps."""
        counts = []
        for integrate, _ in LIBRARIES.values():
            count = 0

            def f(t, y):
                nonlocal count
                count += 1
                return -0.01 * y

            t, _ = integrate(
                f, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0]).double(), event_fn=lambda t, y: y - 0.1
            )
            assert t.item() == pytest.approx(100 * math.log(10), rel=1e-6)
            counts.append(count)
        assert counts[1] <= counts[0]

    def test_no_event(self, monkeypatch):
        monkeypatch.setattr("odebench.ode.torchdiffeq_api.MAX_EVENT_STEPS", 100)
        y0, t = torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0]).double()
        with pytest.raises(RuntimeError, match="max_steps"):
            odeint(lambda t, y: -y, y0, t, method="rk4", options={"step_size": 1e-3}, event_fn=lambda t, y: y + 1)
        with pytest.raises(RuntimeError, match="max_steps"):
            odeint(lambda t, y: -y, y0, t, options={"max_num_steps": 50}, event_fn=lambda t, y: y + 1)
        with pytest.raises(ValueError, match="step_size"):
            odeint(lambda t, y: -y, y0, t, method="rk4", event_fn=lambda t, y: y + 1)

    @pytest.mark.parametrize("speed", [0.0, 1.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_an_event_that_is_never_reached(self, reverse, dtype, speed):
        with pytest.raises(AssertionError, match="whose event was not reached, failed: max_steps"):
            odeint_event(
                lambda t, y: torch.full_like(y, -speed if reverse else speed),
                torch.ones(2, dtype=dtype),
                torch.tensor(0.0, dtype=dtype),
                event_fn=lambda t, y: y[0] + 5,
                reverse_time=reverse,
            )
