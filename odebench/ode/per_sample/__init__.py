"""Per-sample stepping: every row of the state has its own step size, time span, output times, event and status.

``solve(..., stepping="per_sample")`` gives each row what solving it alone would give, row for row the same steps,
while one call of f serves all rows at work:

- All tensors of y0 are [B, ...]. t is [T], or [B, T] with each row's own times, each row increasing or decreasing.
- f(t, y, *args) gets t [b] and y [b, ...], b the number of rows at work, and returns [b, ...]. Rows that are done (at
  their end or their event, or failed) drop out before the next attempt, so that b falls. A tensor in ``args`` comes
  as it is; one that holds something for each row is given as ``Rows(tensor)``, tensor [B, ...], and comes as [b, ...].
- All rows at work try a step at the same time. A row that is rejected keeps its state and tries a smaller one next,
  while the others move on. The error of a row is the root mean square over the row.
- event: one terminal event, its function (t [b], y [b, ...]) -> [b]. ``Solution.events[0]`` has the time [B] and the
  state of each row's first zero, NaN where there is none.
- ``Solution.rows`` says for each row how it ended and what it cost. A row's failure does not stop the others;
  ``Solution.status`` is the worst of all.
- gradient: "backprop" or "checkpoint", of whose options ``checkpoints`` counts the states of all rows together. With
  backprop, an attempt that was rejected while others were accepted stays in the graph and gets a gradient of zero;
  where it was not finite, the accepted rows are evaluated once more, without it.
"""

from odebench.ode.per_sample.problem import RowProblem, Rows, whole
from odebench.ode.per_sample.rowwise import solve_rows
from odebench.ode.per_sample.step_size import counted_grid

__all__ = ["RowProblem", "Rows", "counted_grid", "solve_rows", "whole"]
