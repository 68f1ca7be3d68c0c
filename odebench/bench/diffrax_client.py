"""diffrax from here: the other end of ``diffrax_server``, which JAX has for itself.

JAX and PyTorch in one process would fight over the threads, so that each slows the other.
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
from odebench.bench.packing import pack, unpack

STOP_TIMEOUT_S = 5.0


class DiffraxClient:
    """A process that solves one problem by diffrax, with as many threads as torch has here.

    Raises RuntimeError, with the process's last word, where it cannot go on.
    """

    def __init__(self, problem: CaseProblem) -> None:
        self._start = {
            "work": problem.work.name,
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
            # Its own signals: Ctrl-C is for us, and we close its input.
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
        """Compiles and runs one job: its states and gradients as tensors, its evaluations and steps, its number."""
        if self._start:
            start, self._start = self._start, {}
            self._ask(start)
        reply = self._ask({"mode": mode, "method": method, "tol": tol})
        for name in ("states", "gradients"):
            packed = reply[name]
            reply[name] = packed and [torch.from_numpy(unpack(one)) for one in packed]
        return reply

    def seconds(self, job: int) -> float:
        """Runs a prepared job once; its time as measured over there, until its result is there."""
        return self._ask({"run": job})["seconds"]

    def bare_seconds(self, gradient: bool) -> float:
        """One evaluation of the field alone over there, with its vector-Jacobian product or without."""
        return self._ask({"bare": gradient})["seconds"]

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
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
