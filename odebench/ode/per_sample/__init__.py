"""Per-sample stepping: every row of the state has its own step size, time span, output times, event and status.

``solve(..., stepping="per_sample")`` takes the same steps in each row as solving that row alone, with one call of f for
all active rows:

- All tensors of y0 are [B, ...]. t is [T], or [B, T] with different times for each row, increasing or decreasing.
- f(t, y, *args) gets t [b] and y [b, ...] and returns [b, ...], where b is the number of active rows. A row is finished
  when it has reached its last time or its event, or has failed. Finished rows are removed before the next attempt, so
  that b decreases. f gets a tensor in ``args`` unchanged. If a tensor [B, ...] has one entry per row, pass it as
  ``Rows(tensor)``; f then gets the entries [b, ...] of the active rows.
- All active rows attempt a step at the same time. A row that rejects its step keeps its state and attempts a smaller
  step next, while the others continue. The error of a row is the root mean square over the row.
- event: one terminal event with a function (t [b], y [b, ...]) -> [b]. ``Solution.events[0]`` has the time [B] and the
  state of the first zero of each row; NaN for a row without a zero.
- ``Solution.rows`` has the status and the cost of each row. If a row fails, the others continue; ``Solution.status`` is
  the worst status of all rows.
- gradient: "backprop" or "checkpoint". The option ``checkpoints`` of the latter counts the states of all rows together.
  With backprop, if some rows accept an attempt, the rows that reject it stay in its graph, with a gradient of zero. If
  the attempt of a rejected row is not finite, the accepted rows are evaluated again without the rejected rows.
"""

from odebench.ode.per_sample.problem import RowProblem, Rows, unwrap_rows
from odebench.ode.per_sample.solving import solve_rows
from odebench.ode.per_sample.step_size import grid_with_num_steps

__all__ = ["RowProblem", "Rows", "grid_with_num_steps", "solve_rows", "unwrap_rows"]
