"""What is read off the accepted steps of a solve."""

import math

import torch
from torch import Tensor

from odebench.ode.dense import Interpolant
from odebench.ode.events import EventDetector, EventHit, ZeroCrossing
from odebench.ode.methods.steppers import Stepper


class OutputRecorder:
    """Reads what is wanted off the accepted steps: the states asked for, the dense pieces, the zeros of events.

    outputs, times: the states recorded so far, some rows [m, N] at a time, and the times of all rows.
    rows, hits, end, pieces: see ``IntegrationResult``.
    dense, interpolation: see ``SolvePlan``.
    """

    def __init__(
        self,
        stepper: Stepper,
        y: Tensor,
        times: list[float],
        dense: bool,
        interpolation: str,
        detector: EventDetector | None,
    ) -> None:
        self._stepper, self._asked, self._watch = stepper, times, detector
        self._dense, self._interpolation = dense, interpolation
        self.outputs, self.times, self.rows = [y.unsqueeze(0)], [times[0]], [0]
        self.hits: list[EventHit] = []
        self.pieces: list[Interpolant] = []
        self.end = times[0]

    def read(self, t: float, t_next: float, y: Tensor, y_next: Tensor) -> float | None:
        """Read the step from t, y [N] to t_next, y_next [N]; the time of a terminal event in it."""
        h, self.end, first = t_next - t, t_next, len(self.rows)
        due = first
        while due < len(self._asked) and (self._asked[due] - t_next) * h <= 0:
            due += 1
        wanted = self._asked[first:due]
        if not (wanted or self._dense or self._watch):
            return None
        interpolant = None
        if self._dense or self._watch or wanted[0] != t_next:
            interpolant = self._stepper.interpolant(t, t_next, y, y_next, self._interpolation)
        if interpolant is not None and self._dense:
            self.pieces.append(interpolant.kept())
        found: list[ZeroCrossing] = []
        ends = False
        if interpolant is not None and self._watch:
            found, ends = self._watch.look(interpolant, t_next, y_next)
        found_at = [t_next if crossing.theta == 1 else t + crossing.theta * h for crossing in found]
        event_time = found_at[-1] if ends else None
        if event_time is not None:
            wanted = [time for time in wanted if (time - event_time) * h <= 0]
        times = sorted({*wanted, *found_at}, reverse=h < 0) if found else wanted
        rows = self._keep(times, t, t_next, interpolant, y_next)
        self.rows += [rows[time] for time in wanted]
        self.hits += [EventHit(c.index, c.element, time, rows[time]) for c, time in zip(found, found_at, strict=True)]
        return event_time

    def _keep(
        self, times: list[float], t: float, t_next: float, interpolant: Interpolant | None, y_next: Tensor
    ) -> dict[float, int]:
        """Keep the states at times of a step, in their order; the row of each."""
        last = len(self.times) - 1
        # An event at the very start of a step is at the end of the one before.
        new = [time for time in times if time != self.times[-1]]
        thetas = [(time - t) / (t_next - t) for time in new if time != t_next]
        if thetas:
            assert interpolant is not None
            self.outputs.append(interpolant.at(thetas))
        if new[-1:] == [t_next]:
            self.outputs.append(y_next.unsqueeze(0))
        self.times += new
        return {time: last + i for i, time in enumerate(self.times[last:])}

    def close(self) -> None:
        """The solve is over: NaN at the times that it did not reach."""
        for time in self._asked[len(self.rows) :]:
            self.rows.append(len(self.times))
            self.outputs.append(torch.full_like(self.outputs[0], math.nan))
            self.times.append(time)
