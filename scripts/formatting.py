"""Format tables and numbers for the pages in docs/."""

from collections.abc import Iterable, Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("| --- ", "|---").replace("--- |", "---|") for line in lines)


def milliseconds(value: float | None) -> str:
    """Format milliseconds with three digits; from 100 on without decimals."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def scientific(value: float | None) -> str:
    """Format a number in scientific notation with two digits."""
    return "–" if value is None else f"{value:.1e}"


def value_range(values: Iterable[float]) -> str:
    """Format the smallest and the largest ratio, as one number if both look the same; "" without values."""
    ends = [f"{one:.1f}" if one < 10 else f"{one:.0f}" for one in sorted(values)]
    return " to ".join(dict.fromkeys([ends[0], ends[-1]])) if ends else ""
