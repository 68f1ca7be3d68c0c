"""The backward solve of the continuous adjoint by fixed steps as a graph, and the code that runs it.

The equations and the steps are those of ``odebench.ode.gradients.adjoint``.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from odebench.ode.compiled.adjoint import interpolate
from odebench.ode.compiled.adjoint_run import BackwardStart
from odebench.ode.compiled.field import FieldModule, GraphField, rate_of_inputs, slots_of
from odebench.ode.compiled.fixed import take_step
from odebench.ode.compiled.graph import NotCompiledError, SolveGraphs, loop
from odebench.ode.compiled.outputs import padded_length
from odebench.ode.integrate import grid_with_stops
from odebench.ode.methods.compiled_step import weighted_sum
from odebench.ode.methods.tableau import Tableau
from odebench.ode.plan import SolvePlan
from odebench.ode.solution import Stats

# Steps of one run of the loop; a longer solve enters it again.
MAX_ROWS = 128


class FixedAdjointChoices(NamedTuple):
    """The choices that a graph of the backward solve by fixed steps is compiled for; see ``AdjointChoices``."""

    method: Tableau
    interpolates: bool
    names: tuple[str, ...]
    arg_idx: tuple[int, ...]


def make_fixed_adjoint(
    field: GraphField, module: FieldModule, choices: FixedAdjointChoices
) -> Callable[..., tuple[Tensor, ...]]:
    """The function ``backward`` below."""
    method, interpolates, names, arg_idx = choices
    layout, slots = field.layout, slots_of(module, names)

    def backward(
        n: Tensor,
        steps: Tensor,
        states: Tensor,
        gradients: Tensor,
        z: Tensor,
        check: Tensor,
        totals: list[Tensor],
        parameters: list[Tensor],
        args: list[Tensor],
        path: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """The backward state, the check and the totals after n steps.

        n: int64. steps [rows, 3]: for each step the times where it starts and ends, and the index of the output time
            there, or -1; float64. states, gradients: [T, N] y and dL/dy at the output times.
        z: the backward state, y and the adjoint [2N], or the adjoint [N] if y is interpolated.
        check: a sum over all backward states, which is finite only if they are, float64.
        totals: the gradients of the parameters and arguments so far. path: see ``path_tables``; or empty.
        """
        num = states.shape[1]
        targets = [*parameters, *(args[i] for i in arg_idx)]

        def is_left(i: Tensor, *carried: Tensor) -> Tensor:
            return i < n

        def step_back(i: Tensor, z: Tensor, check: Tensor, *totals: Tensor) -> tuple[Tensor, ...]:
            t, t_next, output = steps.index_select(0, i.reshape(1))[0].unbind()
            integrands: list[list[Tensor]] = []

            def slope(time: Tensor, z: Tensor) -> Tensor:
                y = interpolate(time, torch.sign(t_next - t), *path) if interpolates else z[:num]
                k, pull, *_ = vjp(rate_of_inputs(module, layout, slots, arg_idx, time, args), y, *targets)
                part, *integrand = pull(z[-num:])
                integrands.append(integrand)
                return -part if interpolates else torch.cat([k, -part])

            z = take_step(field, method, slope, t, t_next, z)
            integrals = ((t_next - t) * weighted_sum(method.b, parts) for parts in zip(*integrands, strict=True))
            totals = tuple((x - part).to(x.dtype) for x, part in zip(totals, integrals, strict=True))
            check = check + z.sum(dtype=torch.float64)
            row = output.clamp(min=0).to(torch.int64).reshape(1)
            a = z[-num:] + gradients.index_select(0, row)[0]
            start = a if interpolates else torch.cat([states.index_select(0, row)[0], a])
            return i + 1, torch.where(output >= 0, start, z), check, *totals

        carried = [x.clone() for x in (z, check, *totals)]
        return tuple(loop(is_left, step_back, (torch.zeros_like(n), *carried))[1:])

    return backward


def run_fixed_adjoint(
    graphs: SolveGraphs,
    choices: FixedAdjointChoices,
    plan: SolvePlan,
    start: BackwardStart,
    totals: list[Tensor],
    stats: Stats,
) -> Tensor:
    """Return dL/dy [N] at the first time; add the gradients of parameters and arguments to ``totals``.

    For the arguments see ``run_adjoint``. Raises NotCompiledError if torch cannot compile the graph, and if the solve
    fails, which the eager solve reports.
    """
    grids = [grid_with_stops([t, end], plan) for t, end in itertools.pairwise(reversed(start.times))]
    if any(len(grid) - 1 > plan.max_steps for grid in grids):
        raise NotCompiledError
    steps: list[list[float]] = []
    for output, grid in zip(reversed(range(len(grids))), grids, strict=True):
        steps += [[*ends, -1.0] for ends in itertools.pairwise(grid)]
        steps[-1][2] = output
    length = padded_length(len(start.times)) - len(start.times)
    tables = [torch.nn.functional.pad(x, (0, 0, 0, length)) for x in (start.states, start.gradients)]
    graph = graphs.gradient(make_fixed_adjoint, choices, layout=start.lengths(tables))
    z = start.a.clone() if choices.interpolates else torch.cat([start.states[-1], start.a])
    fields = start.parameters, start.args, start.path
    check, sums = torch.zeros((), dtype=torch.float64), totals
    for first in range(0, len(steps), MAX_ROWS):
        chunk = torch.tensor(steps[first : first + MAX_ROWS], dtype=torch.float64)
        rows = torch.zeros(MAX_ROWS, 3, dtype=torch.float64)
        rows[: len(chunk)] = chunk
        z, check, *sums = graph(torch.tensor(len(chunk)), rows, *tables, z, check, sums, *fields)
    if not math.isfinite(check.item()):
        raise NotCompiledError
    totals[:] = sums
    stats.step_sizes += [end - t for t, end, _ in steps]
    stats.accepted += len(steps)
    # After a jump, the eager solve evaluates f once more.
    jumps = sum(time in plan.jump_times for grid in grids for time in grid[1:-1])
    stats.nfe += len(steps) * choices.method.stages + jumps
    return z[-start.states.shape[1] :]
