"""The process of ``diffrax_client``, which solves with diffrax. It imports no torch."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

FIELD_CALLS = 10


def serve(connection: Connection, threads: int, case: str, *arrays: Any) -> None:
    """Reply to messages until the connection is closed. A message is a method of `DiffraxServer`, and its arguments.

    Errors are sent as a RuntimeError of one line, since JAX's exceptions cannot always be pickled.
    arrays: parameters, state and times, as `DiffraxServer` takes them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process handles Ctrl-C and ends this one
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # hide JAX's warnings
    # XLA starts as many threads as the process has cores.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    server = None
    while True:
        try:
            name, *arguments = connection.recv()
        except EOFError:
            return
        try:
            server = server or DiffraxServer(FIELDS[case], *arrays)
            connection.send(getattr(server, name)(*arguments))
        except Exception as error:
            connection.send(RuntimeError(f"{type(error).__name__}: {error}".splitlines()[0]))


class DiffraxServer:
    """One problem, and the solves compiled for it. parameters, state: their tensors as arrays; times: [T]."""

    def __init__(
        self, field: Callable[..., Any], parameters: list[np.ndarray], state: list[np.ndarray], times: np.ndarray
    ) -> None:
        import jax

        jax.config.update("jax_enable_x64", times.dtype == np.float64)
        self._field = field
        self._parameters, leaves = ([*map(jax.numpy.asarray, arrays)] for arrays in (parameters, state))
        self._state = tuple(leaves) if len(leaves) > 1 else leaves[0]
        self._times = jax.numpy.asarray(times)
        self._solves: list[Callable[[], Any]] = []
        self._evaluations: dict[bool, Any] = {}
        self._counts: dict[tuple[str, str, float], int] = {}

    def prepare(self, mode: str, method: str, tol: float) -> dict[str, Any]:
        """Compile a solve and run it; other runs count its evaluations. See ``DiffraxClient.prepare``."""
        import jax

        inputs = (self._parameters, self._state)
        function = jax.jit(self._function(mode, method, tol, self._field))
        started = time.perf_counter()
        (states, steps), gradients = jax.block_until_ready(function(*inputs))
        first_s = time.perf_counter() - started
        self._solves.append(lambda: jax.block_until_ready(function(*inputs)))
        index = len(self._solves) - 1
        nfe_forward = self._count("forward", method, tol)
        nfe_total = self._count(mode, method, tol)
        return {
            "index": index,
            "compile_s": first_s - self.run(index),
            "states": [*map(np.asarray, jax.tree_util.tree_leaves(states))],
            "gradients": [*map(np.asarray, jax.tree_util.tree_leaves(gradients))],
            "nfe_forward": nfe_forward,
            "nfe_backward": nfe_total - nfe_forward,
            "accepted": int(steps["num_accepted_steps"]),
            "rejected": int(steps["num_rejected_steps"]),
        }

    def run(self, index: int) -> float:
        """Run a prepared solve once. Returns the seconds."""
        started = time.perf_counter()
        self._solves[index]()
        return time.perf_counter() - started

    def evaluate(self, gradient: bool) -> float:
        """Measure the seconds of one evaluation of the field, with its vector-Jacobian product if ``gradient``.

        This is the mean over a loop inside one compiled function, as in a solve.
        """
        import jax

        add = lambda a, b: jax.tree_util.tree_map(lambda x, y: x + 1e-6 * y, a, b)  # noqa: E731

        def once(_: Any, carry: Any) -> Any:
            rate, product = jax.vjp(lambda *carry: self._field(carry[0], self._times[0], carry[1]), *carry)
            if gradient:  # use the rate in the state and the product in the parameters, so that XLA removes neither
                slopes = product(rate)
                return add(carry[0], slopes[0]), add(add(carry[1], rate), slopes[1])
            return carry[0], add(carry[1], rate)

        inputs = (self._parameters, self._state)
        if gradient not in self._evaluations:
            self._evaluations[gradient] = jax.jit(lambda *carry: jax.lax.fori_loop(0, FIELD_CALLS, once, carry))
            jax.block_until_ready(self._evaluations[gradient](*inputs))
        started = time.perf_counter()
        jax.block_until_ready(self._evaluations[gradient](*inputs))
        return (time.perf_counter() - started) / FIELD_CALLS

    def _function(self, mode: str, method: str, tol: float, field: Callable[..., Any]) -> Callable[..., Any]:
        """Make the function (parameters, state) -> ((states, statistics), gradients of the loss).

        In mode "forward" there are no gradients.
        """
        import diffrax
        import jax
        import jax.numpy as jnp

        adjoint = diffrax.BacksolveAdjoint() if mode == "adjoint" else diffrax.RecursiveCheckpointAdjoint()
        term = diffrax.ODETerm(lambda t, y, parameters: field(parameters, t, y))
        solver = getattr(diffrax, method)()
        times = self._times

        def solve(parameters: Any, state: Any) -> Any:
            solution = diffrax.diffeqsolve(
                term,
                solver,
                times[0],
                times[-1],
                None,
                state,
                parameters,
                saveat=diffrax.SaveAt(ts=times),
                stepsize_controller=diffrax.PIDController(rtol=tol, atol=tol),  # by default integral control
                adjoint=adjoint,
                max_steps=2**14,
            )
            return solution.ys, solution.stats

        def loss(parameters: Any, state: Any) -> Any:
            states, steps = solve(parameters, state)
            return sum(jnp.mean(leaf[1:] ** 2) for leaf in jax.tree_util.tree_leaves(states)), (states, steps)

        def with_gradients(parameters: Any, state: Any) -> Any:
            (_, output), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(parameters, state)
            return output, gradients

        return with_gradients if mode != "forward" else lambda *inputs: (solve(*inputs), ())

    def _count(self, mode: str, method: str, tol: float) -> int:
        """Count the evaluations in a solve, by a callback to the host."""
        import jax

        if (mode, method, tol) in self._counts:
            return self._counts[mode, method, tol]

        calls = 0

        def increment() -> None:
            nonlocal calls
            calls += 1

        def counted(parameters: Any, t: Any, y: Any) -> Any:
            jax.debug.callback(increment)
            return self._field(parameters, t, y)

        function = self._function(mode, method, tol, counted)
        jax.block_until_ready(jax.jit(function)(self._parameters, self._state))
        jax.effects_barrier()
        self._counts[mode, method, tol] = calls
        return calls


def _linear(weight: Any, bias: Any, x: Any) -> Any:
    return x @ weight.T + bias


def spiral(parameters: Any, t: Any, y: Any) -> Any:
    """``fields.Spiral``."""
    import jax.numpy as jnp

    w1, b1, w2, b2 = parameters
    return _linear(w2, b2, jnp.tanh(_linear(w1, b1, y**3)))


def mlp(activation: str) -> Callable[..., Any]:
    """``AutonomousField`` with two hidden layers."""

    def field(parameters: Any, t: Any, y: Any) -> Any:
        import jax

        act = {"tanh": jax.numpy.tanh, "silu": jax.nn.silu}[activation]
        w1, b1, w2, b2, w3, b3 = parameters
        return _linear(w3, b3, act(_linear(w2, b2, act(_linear(w1, b1, y)))))

    return field


def conv(parameters: Any, t: Any, y: Any) -> Any:
    """``fields.ConvField`` with 32 groups, the time concatenated as a channel."""
    import jax
    import jax.numpy as jnp

    def norm(x: Any, weight: Any, bias: Any) -> Any:
        grouped = x.reshape(x.shape[0], 32, -1)
        centred = grouped - grouped.mean(-1, keepdims=True)
        scaled = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]

    def convolve(x: Any, weight: Any, bias: Any) -> Any:
        x = jnp.concatenate([jnp.full_like(x[:, :1], t), x], 1)
        return jax.lax.conv(x, weight, (1, 1), "SAME") + bias[:, None, None]

    n1w, n1b, c1w, c1b, n2w, n2b, c2w, c2b, n3w, n3b = parameters
    y = convolve(jax.nn.relu(norm(y, n1w, n1b)), c1w, c1b)
    y = convolve(jax.nn.relu(norm(y, n2w, n2b)), c2w, c2b)
    return norm(y, n3w, n3b)


def flow(parameters: Any, t: Any, state: Any) -> Any:
    """``fields.HypernetworkFlow``."""
    import jax
    import jax.numpy as jnp

    w1, b1, w2, b2, w3, b3 = parameters
    z, _ = state
    hidden = jnp.tanh(_linear(w2, b2, jnp.tanh(_linear(w1, b1, jnp.reshape(t, 1).astype(z.dtype)))))
    width = len(b3) // 7
    w, u, gate, b = jnp.split(_linear(w3, b3, hidden), [2 * width, 4 * width, 6 * width])
    w, u = w.reshape(2, width), (u * jax.nn.sigmoid(gate)).reshape(width, 2) / width
    h = jnp.tanh(z @ w + b)
    return h @ u, (h * h - 1) @ (w.T * u).sum(1, keepdims=True)


def robertson(parameters: Any, t: Any, y: Any) -> Any:
    """``fields.Robertson``."""
    import jax.numpy as jnp

    k1, k2, k3 = jnp.exp(parameters[0])
    a, b, c = y[0], 1e-4 * y[1], y[2]
    slow, fast, back = k1 * a, k2 * b * b, k3 * b * c
    return jnp.stack([back - slow, 1e4 * (slow - back - fast), fast])


def van_der_pol(parameters: Any, t: Any, y: Any) -> Any:
    """``fields.VanDerPol``."""
    import jax.numpy as jnp

    x, v = y
    return jnp.stack([v, jnp.exp(parameters[0]) * (1 - x * x) * v - x])


def oscillators(parameters: Any, t: Any, y: Any) -> Any:
    """``fields.Oscillators``."""
    import jax.numpy as jnp

    x, v, mu = y[:, 0], y[:, 1], y[:, 2]
    return jnp.stack([v, parameters[0] * mu * (1 - x * x) * v - x, jnp.zeros_like(mu)], 1)


FIELDS: dict[str, Callable[..., Any]] = {
    "tiny": spiral,
    "mlp": mlp("tanh"),
    "mlp_silu": mlp("silu"),
    "conv": conv,
    "cnf": flow,
    "robertson": robertson,
    "vdp": van_der_pol,
    "mixed": oscillators,
}
