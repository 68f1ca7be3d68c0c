"""The memory of a compiled loop for its steps, and the steps that it has stored there."""

from typing import NamedTuple

import torch
from torch import Tensor

from odebench.ode.compiled.step_control import STEP_COLUMNS
from odebench.ode.dense import Interpolant
from odebench.ode.methods.tableau import Tableau

# The buffers of finished solves are used again, unless they are large: fresh memory costs its page faults.
MAX_SPARE_BUFFERS, MAX_SPARE_BYTES = 4, 2**24


def padded_length(count: int) -> int:
    """One of a few lengths that are at least ``count``, as a graph is compiled anew for each length."""
    length = 2
    while length < count:
        length *= 4 if length > 2 else 2
    return length


class StepBuffers:
    """Memory for ``rows`` steps, which returns to the list ``spare`` when nothing refers to this object any more.

    steps: [rows, 4]; see ``STEP_COLUMNS``. kept: [rows, S + 1, N], y and the stages of each step; or [1, S + 1, N],
    those of the last attempt.
    """

    def __init__(self, spare: list[tuple[Tensor, Tensor]], rows: int, shape: tuple[int, int, int], y: Tensor) -> None:
        self._spare = spare
        fitting = (i for i, (_, kept) in enumerate(spare) if kept.shape == shape)
        if (i := next(fitting, None)) is not None:
            self.steps, self.kept = spare.pop(i)
        else:
            # Tensors made in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                self.steps = torch.zeros(rows, STEP_COLUMNS, dtype=torch.float64)
                self.kept = torch.zeros(shape, dtype=y.dtype, device=y.device)

    def __del__(self) -> None:
        if self.kept.nbytes <= MAX_SPARE_BYTES:
            if len(self._spare) == MAX_SPARE_BUFFERS:
                del self._spare[0]
            self._spare.append((self.steps, self.kept))


class StoredSteps(NamedTuple):
    """The n steps of one run of the compiled loop: all of a solve, or up to a time that a step must end at, or as many
    as the buffers hold.

    span: the times at which they start and end. rows: the table of steps as numbers.
    weights: how output states follow from them; see ``output_weights``.
    """

    buffers: StepBuffers
    n: int
    span: tuple[float, float]
    rows: list[list[float]]
    weights: list[Tensor]

    def has_outputs_inside(self, times: list[float]) -> list[bool]:
        """For each step whether its first output time is not its end, so that dense output is needed."""
        found = [False] * self.n
        if not self.weights:
            return found
        ends = [*(row[0] for row in self.rows[1:]), self.span[1]]
        idx, _, inside = (x.tolist() for x in self.weights)
        for time, step, is_inside in reversed(list(zip(times, idx, inside, strict=False))):
            if is_inside:
                found[step] = time != ends[step]
        return found

    def interpolants(self, method: Tableau) -> list[Interpolant]:
        """The dense output of each step."""
        assert method.dense is not None
        # A copy, since another solve may use the buffers.
        kept = self.buffers.kept[: self.n, : len(method.dense) + 1].clone()
        steps = zip(self.rows, kept.unbind(), strict=True)
        return [Interpolant(row[0], row[1], states[0], states[1:], method.dense) for row, states in steps]
