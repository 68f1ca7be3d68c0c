"""Ours against the published, in plain words."""

import math

from odebench.config.schema.quantities import higher_is_better
from odebench.reporting.published import is_partial, percent
from odebench.reporting.table import scale, shown

# Another machine's is no standard.
WITHOUT_VERDICT = ("final/minutes",)


def verdict(tag: str, ours: float, published: float, within: float, share: float | None) -> str:
    """Whether a number was reproduced. within: how far off still counts, as a share of the published (of an accuracy:
    of its error); a result that is better always does. share: of the published training that ours had."""
    if tag in WITHOUT_VERDICT:
        return "another machine"
    worse = how_much_worse(tag, ours, published)
    more, less = ("worse", "better") if tag.startswith("final/test_") else ("more", "less")
    if abs(worse) <= within:
        how = f"within {100 * abs(worse):.1f} %"
    else:
        how = f"{more if worse > 0 else less} by {100 * abs(worse):.0f} %"
    if share is not None and is_partial(share) and tag != "parameters":
        return f"partial budget, {percent(share)} of the published training: {how}"
    is_reached = abs(worse) <= within or how.startswith("better")
    return f"{'reproduced' if is_reached else 'not reached'}: {how}"


def how_much_worse(tag: str, ours: float, published: float) -> float:
    """The relative difference, positive where ours is the worse (or the larger, where neither is better); of an
    accuracy that of the errors. Of a published 0 it is 0 or infinite."""
    if tag.endswith("accuracy"):
        ours, published = 1 - ours, 1 - published
    elif _rises(tag):
        ours, published = -ours, -published
    gap = ours - published
    return gap / abs(published) if published else math.copysign(math.inf, gap) if gap else 0.0


def _rises(tag: str) -> bool:
    """Whether more is better."""
    return higher_is_better(tag.removeprefix("final/test_").removeprefix("best/"))


def compared(tag: str, ours: float, others: float, name: str, published_ratio: float = math.nan) -> str:
    """Whether a row beats another as published, and at least half as clearly where it is known how clearly."""
    sign = -1.0 if _rises(tag) else 1.0
    word = "as published" if sign * ours < sign * others else "not as published"
    how_clearly = math.isfinite(published_ratio) and word == "as published"
    if how_clearly and abs(1 - ours / others) < 0.5 * abs(1 - published_ratio):
        word = "better, but by less than half as much as published"
    text = f"{word}: {shown(scale(tag) * ours)} against {shown(scale(tag) * others)} of {name}"
    if math.isfinite(published_ratio):
        text += f", ratio {ours / others:.2f} (published {published_ratio:.2f})"
    return text
