"""Recording of output states, interpolants and events from the accepted steps of a solve."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from odebench.ode.dense import Interpolant
from odebench.ode.events import EventDetector, EventHit, ZeroCrossing
from odebench.ode.methods.stepper import Stepper


class OutputRecorder:
    """Record the states at output times, the interpolants and the zeros of events from the accepted steps.

    state_chunks: the states recorded so far, as chunks [m, N]. times: the times of these states.
    output_rows, hits, end_time, interpolants: see ``IntegrationResult``.
    dense, interpolation: see ``SolvePlan``.
    output_shift: see ``integrate``.
    """

    def __init__(
        self,
        stepper: Stepper,
        y: Tensor,
        times: list[float],
        dense: bool,
        interpolation: str,
        detector: EventDetector | None,
        output_shift: Callable[[float], Tensor] | None = None,
    ) -> None:
        self._stepper, self._output_times, self._detector = stepper, times, detector
        self._dense, self._interpolation, self._output_shift = dense, interpolation, output_shift
        self.state_chunks, self.times, self.output_rows = [y.unsqueeze(0)], [times[0]], [0]
        self.hits: list[EventHit] = []
        self.interpolants: list[Interpolant] = []
        self.end_time = times[0]

    def record(self, t: float, t_next: float, y: Tensor, y_next: Tensor) -> float | None:
        """Record the step from t, y [N] to t_next, y_next [N].

        Returns the time of a terminal event in this step; None if there is none.
        """
        h, self.end_time, first = t_next - t, t_next, len(self.output_rows)
        due = first
        while due < len(self._output_times) and (self._output_times[due] - t_next) * h <= 0:
            due += 1
        wanted = self._output_times[first:due]
        if not (wanted or self._dense or self._detector):
            return None
        moves = self._output_shift is not None and t_next != self._output_times[-1]
        if wanted == [t_next] and not (self._dense or self._detector or moves):
            self.output_rows.append(len(self.times))
            self.times.append(t_next)
            self.state_chunks.append(y_next.unsqueeze(0))
            return None
        interpolant, zeros, ends = None, list[ZeroCrossing](), False
        if self._dense or self._detector or moves or wanted[0] != t_next:
            interpolant = self._stepper.interpolant(t, t_next, y, y_next, self._interpolation)
            if self._dense:
                self.interpolants.append(interpolant.copy())
            if self._detector:
                zeros, ends = self._detector.detect(interpolant, t_next, y_next)
        zero_times = [t_next if zero.theta == 1 else t + zero.theta * h for zero in zeros]
        event_time = None
        if ends:
            event_time = zero_times[-1] = self._snap_to_output(zero_times[-1], t, t_next, wanted)
            wanted = [time for time in wanted if (time - event_time) * h <= 0]
        times = sorted({*wanted, *zero_times}, reverse=h < 0) if zeros else wanted
        rows = self._append(times, t, t_next, interpolant, y_next)
        self.output_rows += [rows[time] for time in wanted]
        self.hits += [EventHit(z.index, z.element, time, rows[time]) for z, time in zip(zeros, zero_times, strict=True)]
        return event_time

    def _snap_to_output(self, event_time: float, t: float, t_next: float, wanted: list[float]) -> float:
        """Return the time of an event, or an output time in ``wanted`` that lies just after it.

        The output time is returned if it differs from the time of the event only by rounding.
        """
        eps = torch.finfo(self.state_chunks[0].dtype).eps
        direction, distance = math.copysign(1.0, t_next - t), 8 * eps * max(abs(t), abs(t_next))
        return next((time for time in wanted if 0 < (time - event_time) * direction <= distance), event_time)

    def _append(
        self, times: list[float], t: float, t_next: float, interpolant: Interpolant | None, y_next: Tensor
    ) -> dict[float, int]:
        """Append the states at the given times of a step, which must be in order; return the row of each state."""
        last = len(self.times) - 1
        # An event at the very start of a step was already recorded at the end of the step before.
        new = [time for time in times if time != self.times[-1]]
        thetas = [(time - t) / (t_next - t) for time in new if time != t_next]
        if thetas:
            assert interpolant is not None
            self.state_chunks.append(
                self._shifted(interpolant.evaluate(thetas), interpolant, new[: len(thetas)], thetas)
            )
        if new[-1:] == [t_next]:
            self.state_chunks.append(self._shifted(y_next.unsqueeze(0), interpolant, [t_next], [1.0]))
        self.times += new
        return {time: last + i for i, time in enumerate(self.times[last:])}

    def _shifted(
        self, states: Tensor, interpolant: Interpolant | None, times: list[float], thetas: list[float]
    ) -> Tensor:
        """Shift the states [m, N] at the given times of a step along its interpolant; not at the last output time."""
        if self._output_shift is None or times == self._output_times[-1:]:
            return states
        assert interpolant is not None
        return states + interpolant.change(thetas, torch.stack([self._output_shift(time) for time in times]))

    def fill_unreached(self) -> None:
        """Append states of NaN for the output times that the solve did not reach."""
        for time in self._output_times[len(self.output_rows) :]:
            self.output_rows.append(len(self.times))
            self.state_chunks.append(torch.full_like(self.state_chunks[0], math.nan))
            self.times.append(time)
