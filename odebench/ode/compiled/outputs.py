"""States at output times from the steps that a compiled loop has stored, and their gradients."""

import bisect

import torch
from torch import Tensor

from odebench.ode.compiled.step_control import STEP_COLUMNS
from odebench.ode.dense import evaluate_weights
from odebench.ode.methods.tableau import Tableau

# The buffers of finished solves are used again, unless they are large: fresh memory costs its page faults.
MAX_SPARE_BUFFERS, MAX_SPARE_BYTES = 4, 2**24


class StepBuffers:
    """Memory for ``rows`` steps, which returns to the list ``spare`` when nothing refers to this object any more.

    steps: [rows, 4]; see ``STEP_COLUMNS``. kept: [rows, S + 1, N], y and the stages of each step; or [1, S + 1, N],
    those of the last attempt.
    """

    def __init__(self, spare: list[tuple[Tensor, Tensor]], rows: int, shape: tuple[int, int, int], y: Tensor) -> None:
        self._spare = spare
        try:
            self.steps, self.kept = spare.pop()
        except IndexError:
            # Tensors made in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                self.steps = torch.zeros(rows, STEP_COLUMNS, dtype=torch.float64)
                self.kept = torch.zeros(shape, dtype=y.dtype, device=y.device)

    def __del__(self) -> None:
        if len(self._spare) < MAX_SPARE_BUFFERS and self.kept.nbytes <= MAX_SPARE_BYTES:
            self._spare.append((self.steps, self.kept))


class StoredSteps:
    """The n steps of one run of the compiled loop: all of a solve, or as many as the buffers hold.

    rows: the table of steps as numbers. end: the time of the last one's end. last_row: the row of the last attempt.
    outputs: the output times inside the steps, as indices.
    """

    def __init__(self, buffers: StepBuffers, n: int, end: float, last_row: int) -> None:
        self.buffers, self.n, self.end, self.last_row = buffers, n, end, last_row
        self.rows: list[list[float]] = buffers.steps[:n].tolist()
        self.outputs = range(0)
        self._step_of_output: list[int] = []
        self._idx, self._weights = torch.empty(0), torch.empty(0)

    def locate(self, times: list[float], first: int, method: Tableau) -> int:
        """Find the outputs among the times from index ``first`` on; returns the index after them. Not the last time,
        where the solve ends."""
        direction = 1.0 if times[-1] > times[0] else -1.0
        stop = bisect.bisect_right(times, direction * self.end, first, len(times) - 1, key=lambda t: direction * t)
        self.outputs = range(first, stop)
        if not self.outputs:
            return stop
        starts = [direction * row[0] for row in self.rows]
        # A step's end is not the next one's start.
        self._step_of_output = [bisect.bisect_left(starts, direction * times[i]) - 1 for i in self.outputs]
        steps = [self.rows[step] for step in self._step_of_output]
        thetas = [(times[i] - t) / h for i, (t, h, _, _) in zip(self.outputs, steps, strict=True)]
        assert method.dense is not None
        sizes = torch.tensor([h for _, h, _, _ in steps], dtype=torch.float64).unsqueeze(1)
        weights = evaluate_weights(method.dense, thetas, sizes).mul_(sizes)
        self._weights = torch.nn.functional.pad(weights, (1, 0), value=1.0).to(self.buffers.kept.dtype)
        self._idx = torch.tensor(self._step_of_output)
        return stop

    def states(self) -> Tensor:
        """The states [m, N] at the outputs: y and the stages of their steps with their weights [m, s + 1]."""
        rows = self.buffers.kept.index_select(0, self._idx)[:, : self._weights.shape[1]]
        return torch.bmm(self._weights.unsqueeze(1), rows).squeeze(1)

    def gradient(self, gradients: Tensor) -> Tensor:
        """The gradient of the n rows of ``kept``, in its shape, from those of all output states [T, N]."""
        total = torch.empty_like(self.buffers.kept)
        total[: self.n].zero_()
        if self.outputs:
            parts = self._weights.unsqueeze(2) * gradients[self.outputs.start : self.outputs.stop].unsqueeze(1)
            total[:, : self._weights.shape[1]].index_add_(0, self._idx, parts)
        return total

    def has_outputs_inside(self, times: list[float]) -> list[bool]:
        """For each step whether its first output time is not its end, so that dense output is needed."""
        found = [False] * self.n
        ends = [*(row[0] for row in self.rows[1:]), self.end]
        for i, step in zip(reversed(self.outputs), reversed(self._step_of_output), strict=True):
            found[step] = times[i] != ends[step]
        return found
