"""Run diffrax in a separate process, ``diffrax_server``.

JAX and PyTorch in one process compete for threads, and each slows the other.
"""

import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from odebench.bench.cases import CaseProblem, leaves_of
from odebench.bench.diffrax_server import pack, unpack

STOP_TIMEOUT_S = 5.0


class DiffraxClient:
    """A process that solves one problem by diffrax, with as many threads as torch has here.

    Raises RuntimeError, with the message of the process, if it fails.
    """

    def __init__(self, problem: CaseProblem) -> None:
        self._start = {
            "case": problem.case.name,
            "threads": torch.get_num_threads(),
            "parameters": [_pack(parameter) for parameter in problem.parameters],
            "state": [_pack(leaf) for leaf in leaves_of(problem.state)],
            "times": _pack(problem.times),
        }
        self._process: Any = None

    def __enter__(self) -> "DiffraxClient":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "odebench.bench.diffrax_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # A separate session: Ctrl-C reaches only this process, which then closes the input of the other.
            start_new_session=True,
            env={**os.environ, "JAX_ENABLE_X64": "1" if "float64" in self._start["times"]["dtype"] else "0"},  # type: ignore[index]
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def prepare(self, mode: str, method: str, tol: float) -> dict[str, Any]:
        """Compile and run one solve: its index, states and gradients as tensors, evaluations and steps."""
        if self._start:
            start, self._start = self._start, {}
            self._request(start)
        reply = self._request({"mode": mode, "method": method, "tol": tol})
        for name in ("states", "gradients"):
            packed = reply[name]
            reply[name] = packed and [torch.from_numpy(unpack(one)) for one in packed]
        return reply

    def seconds(self, index: int) -> float:
        """Run a prepared solve once; the time until its result is ready, measured in the other process."""
        return self._request({"run": index})["seconds"]

    def field_seconds(self, gradient: bool) -> float:
        """Time of one evaluation of the field alone, with or without its vector-Jacobian product."""
        return self._request({"field": gradient})["seconds"]

    def _request(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the diffrax process has stopped (exit code {self._process.poll()})")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply


def _pack(tensor: Tensor) -> dict[str, Any]:
    return pack(tensor.detach().numpy())
