"""The user's initial value problem as a batch of rows, each with a flat state and its own times."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odebench.ode.problem import CHANGED_IN_PLACE, FlatProblem, counting_changes
from odebench.ode.solution import Stats

REMOVED_ROWS = "; finished rows are removed, so pass tensors with one entry per row as Rows(tensor) in args"


@dataclass(frozen=True)
class Rows:
    """An argument of f with one entry per row of the state, for ``stepping="per_sample"``.

    f gets only the entries of the rows that it is called with.

    tensor: the entries of all rows, [B, ...].
    """

    tensor: Tensor


def unwrap_rows(args: Any) -> Any:
    """Replace all ``Rows`` in the arguments by their tensors, for shared stepping."""
    if isinstance(args, tuple) and not args:
        return args
    return pytree.tree_map(lambda leaf: leaf.tensor if isinstance(leaf, Rows) else leaf, args)


class RowProblem(FlatProblem):
    """A problem of B rows with the flat states y0 [B, n], each row with its own times.

    t: the times as the user gave them, [T] or [B, T].
    row_times: the times [B, T] in float64 on the host. times: the T columns of ``row_times``.
    args: the tensors inside the user's args. If one was wrapped in ``Rows``, each of its entries belongs to a row.
    stats: counts the calls of f; the method ``evaluations`` returns how many evaluations each row took.
    """

    def __init__(self, f: Callable[..., Any], y0: Any, t: Any, args: tuple[Any, ...]) -> None:
        super().__init__(f, y0, t, unwrap_rows(args), batch_dims=1)
        self.num_rows = len(self.y0)
        # The common case needs no pytree: one tensor, of the shape of the flat states.
        self._is_vector = self.layout.is_tensor and len(self.layout.shapes[0]) == 1
        self.row_times = _check_times(self.t, self.num_rows)
        self.times = self.row_times.unbind(1)
        tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor | Rows)]
        self._by_row = [isinstance(leaf, Rows) for leaf in tensors]
        for tensor, by_row in zip(self.args, self._by_row, strict=True):
            if by_row and tensor.shape[:1] != (self.num_rows,):
                shape = tuple(tensor.shape)
                raise ValueError(f"Rows(tensor) needs one entry per row, {self.num_rows}, got shape {shape}")
        self.stats.row_evaluations = 0
        self._evaluations = torch.zeros(self.num_rows, dtype=torch.long, device="cpu")
        self._rows, self._calls, self._arguments = self.all_rows(), 0, self.layout.rebuild_args(self.args)

    def __call__(self, t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """Return dy/dt [b, n] for the rows ``rows`` [b] at their times [b] and flat states [b, n].

        The evaluation is counted as one of the forward solve.
        """
        count_evaluation(self.stats, len(y))
        if rows is not self._rows:
            self.evaluations()
            self._rows, self._arguments = rows, self.layout.rebuild_args(self.row_args(self.args, rows))
        self._calls += 1
        return self._evaluate(t, y, self._arguments)

    def args_of(self, rows: Tensor) -> tuple[Any, ...]:
        """Return the user's args for these rows."""
        # Not ``self._arguments``: the last call of f may have been made without a graph.
        return self.layout.rebuild_args(self.row_args(self.args, rows))

    def evaluations(self) -> Tensor:
        """Return how many evaluations each row took so far, [B]."""
        # Calls are counted together until the rows change: most calls have the same rows as the one before.
        self._evaluations.index_add_(0, self._rows, torch.full_like(self._rows, self._calls))
        self._calls = 0
        return self._evaluations

    def count_row_evaluations(self) -> None:
        """Add one evaluation to the count of every row, for an evaluation of f on all rows.

        ``stats.nfe`` must include this evaluation already.
        """
        self.stats.row_evaluations = (self.stats.row_evaluations or 0) + self.num_rows
        self._calls += 1

    def row_args(self, args: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        """Return the argument tensors, with the entries of only these rows in those that have one entry per row."""
        if len(rows) == self.num_rows:
            return list(args)
        return [take_rows(arg, rows) if by_row else arg for arg, by_row in zip(args, self._by_row, strict=True)]

    def evaluate(self, t: Tensor, y: Tensor, args: Sequence[Tensor]) -> Tensor:
        """Return dy/dt [b, n] at flat states [b, n]; args: the argument tensors. The evaluation is not counted."""
        return self._evaluate(t, y, self.layout.rebuild_args(args))

    def time_tensors(self, times: Sequence[Tensor]) -> list[Tensor]:
        """Return the times as tensors on the device, as f gets them."""
        return [self.on_device(time) for time in times]

    def on_device(self, x: Tensor) -> Tensor:
        """Move times or step sizes from the host to the device of the states, and convert them to their dtype."""
        return x.to(self.y0.device, self.time_dtype, non_blocking=True)

    def all_rows(self) -> Tensor:
        """Return the numbers of all rows, [B]."""
        return torch.arange(self.num_rows, device="cpu")

    def unflatten(self, y: Tensor) -> Any:
        """Return flat states [*batch, n] in the user's structure; its tensors are views [*batch, *shape]."""
        return y if self._is_vector and y.dtype == self.layout.dtype else self.layout.unflatten(y)

    def _evaluate(self, t: Tensor, y: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        f = self.f
        if self.stats.nfe <= 2:
            f, y = self._watched, counting_changes(y)
        version = None if y.is_inference() else y._version
        if self.layout.autocast is None:
            rate = self._flatten_rate(f(t, self.unflatten(y), *arguments), y.shape[0])
        else:
            # Without the cache of autocast: it would keep cast weights and their graph from one call to the next.
            with torch.autocast(y.device.type, self.layout.autocast, cache_enabled=False):
                rate = self._flatten_rate(f(t, self.unflatten(y), *arguments), y.shape[0])
        if version is not None and y._version != version:
            raise ValueError(CHANGED_IN_PLACE)
        return rate

    def _flatten_rate(self, rate: Any, num_rows: int) -> Tensor:
        is_plain = self._is_vector and isinstance(rate, Tensor) and rate.dtype == self.y0.dtype == self.layout.dtype
        if is_plain and rate.shape == (num_rows, self.layout.sizes[0]):
            return rate
        return self.flat(self.layout.check(rate, (num_rows,), REMOVED_ROWS)).to(self.y0.dtype)

    def check_batch(self, leaves: Sequence[Tensor]) -> None:
        """Raise ValueError unless all tensors of the state have the same number of rows."""
        first = leaves[0]
        if first.dim() == 0 or any(leaf.shape[:1] != first.shape[:1] for leaf in leaves):
            shapes = [tuple(leaf.shape) for leaf in leaves]
            raise ValueError(
                f"stepping='per_sample': all tensors of y0 must be [B, ...] with one B, got shapes {shapes}"
            )

    def flat(self, leaves: Sequence[Tensor]) -> Tensor:
        """Join the tensors of b states into flat states [b, n]."""
        flat = [leaf.reshape(len(leaf), size) for leaf, size in zip(leaves, self.layout.sizes, strict=True)]
        # Not every operation accepts the view of a conjugate.
        return flat[0].resolve_conj().resolve_neg() if len(flat) == 1 else torch.cat(flat, dim=1)


def count_evaluation(stats: Stats, num_rows: int) -> None:
    """Count one evaluation of f on ``num_rows`` rows."""
    stats.nfe += 1
    stats.row_evaluations = (stats.row_evaluations or 0) + num_rows


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return the entries [b, ...] of x at the rows ``rows`` [b], whose numbers are on the host."""
    return x.index_select(0, rows.to(x.device, non_blocking=True))


def put_rows(x: Tensor, rows: Tensor, entries: Tensor) -> Tensor:
    """Return x [B, ...] with its entries at the rows ``rows`` [b] replaced by ``entries`` [b, ...]."""
    return x.index_copy(0, rows.to(x.device, non_blocking=True), entries)


def _check_times(t: Tensor, num_rows: int) -> Tensor:
    """Return the times [B, T] in float64 on the host. Raises TypeError or ValueError if they are invalid."""
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"t must hold real times, got {t.dtype}")
    if t.dim() not in (1, 2) or t.shape[-1] < 2 or (t.dim() == 2 and len(t) != num_rows):
        raise ValueError(
            f"t must hold two or more times, [T] for all rows or [{num_rows}, T] for each, got shape {tuple(t.shape)}"
        )
    times = t.detach().to("cpu", torch.float64)
    if not bool(times.isfinite().all()):
        raise ValueError("t must be finite")
    differences = times.diff(dim=-1)
    monotone = (differences > 0).all(-1) | (differences < 0).all(-1)
    if not bool(monotone.all()):
        row = "" if t.dim() == 1 else f", unlike row {int(monotone.logical_not().nonzero()[0])}"
        raise ValueError(f"t must be strictly increasing or strictly decreasing in each row{row}")
    return times.expand(num_rows, -1).contiguous()


def row_rms(x: Tensor, unit: float = 1.0) -> Tensor:
    """Return the root mean square of each row of x [b, n], divided by ``unit``: [b] in float64 on the host.

    Waits for the device.
    """
    x = x.detach()  # also drops forward-mode derivatives: step sizes have none
    norm = torch.linalg.vector_norm(x, dim=1) if x.shape[1] else x.new_zeros(len(x)).real
    return norm.to("cpu", torch.float64).div(math.sqrt(max(x.shape[1], 1)) * unit)
