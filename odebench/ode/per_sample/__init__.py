"""Per-sample stepping: every row of the state has its own step size, time span, output times, event and status.

``solve(..., stepping="per_sample")`` takes the same steps in each row as solving that row alone, with one call of f for
all active rows:

- All tensors of y0 are [B, ...]. t is [T], or [B, T] with different times for each row, increasing or decreasing.
- f(t, y, *args) gets t [b] and y [b, ...], b the number of active rows, and returns [b, ...]. Finished rows (at their
  end or their event, or failed) are removed before the next attempt, so that b decreases. f gets a tensor in ``args``
  unchanged; one with an entry per row is passed as ``Rows(tensor)``, tensor [B, ...], and f gets [b, ...].
- All active rows attempt a step at the same time. A row that rejects it keeps its state and attempts a smaller one
  next, while the others continue. The error of a row is the root mean square over the row.
- event: one terminal event with a function (t [b], y [b, ...]) -> [b]. ``Solution.events[0]`` has the time [B] and the
  state of each row's first zero, NaN where there is none.
- ``Solution.rows`` has the status and the cost of each row. A row's failure does not stop the others;
  ``Solution.status`` is the worst of all.
- gradient: "backprop" or "checkpoint", whose option ``checkpoints`` counts the states of all rows together. With
  backprop, an attempt that was rejected while others were accepted stays in the graph and gets a gradient of zero;
  if it was not finite, the accepted rows are evaluated again, without it.
"""

from odebench.ode.per_sample.problem import RowProblem, Rows, unwrap_rows
from odebench.ode.per_sample.solving import solve_rows
from odebench.ode.per_sample.step_size import grid_with_num_steps

__all__ = ["RowProblem", "Rows", "grid_with_num_steps", "solve_rows", "unwrap_rows"]
