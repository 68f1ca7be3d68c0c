"""Run diffrax in a separate process, ``diffrax_server``.

JAX and PyTorch in one process compete for threads, and each slows the other.
"""

import multiprocessing
from typing import Any

import torch

from odebench.bench import diffrax_server
from odebench.bench.cases import CaseProblem, leaves_of


class DiffraxClient:
    """A process that solves one problem with diffrax, using as many threads as torch does in this process.

    Raises RuntimeError, with the other process' message, if it fails.
    """

    def __init__(self, problem: CaseProblem) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        tensors = (problem.parameters, leaves_of(problem.state))
        arrays = [[tensor.detach().numpy() for tensor in some] for some in tensors]
        self._process = context.Process(
            target=diffrax_server.serve,
            args=(theirs, torch.get_num_threads(), problem.case.name, *arrays, problem.times.numpy()),
            daemon=True,
        )
        self._process.start()
        theirs.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def prepare(self, mode: str, method: str, tol: float) -> dict[str, Any]:
        """Compile and run one solve. Returns its index, its states and gradients as tensors, its NFE and steps, the
        seconds to compile it."""
        reply = self._request("prepare", mode, method, tol)
        for name in ("states", "gradients"):
            reply[name] = [torch.tensor(array) for array in reply[name]] or None
        return reply

    def seconds(self, index: int) -> float:
        """Run a prepared solve once. Returns the time until its result is ready, measured in the other process."""
        return self._request("run", index)

    def field_seconds(self, gradient: bool) -> float:
        """The time of one evaluation of the field alone, with its vector-Jacobian product if ``gradient``."""
        return self._request("evaluate", gradient)

    def _request(self, *message: Any) -> Any:
        try:
            self._connection.send(message)
            reply = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise RuntimeError(f"the diffrax process has stopped (exit code {self._process.exitcode})") from None
        if isinstance(reply, RuntimeError):
            raise reply
        return reply
