"""Format tables and numbers for the pages."""

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("| --- ", "|---").replace("--- |", "---|") for line in lines)


def milliseconds(value: float | None) -> str:
    """Format with three digits, without decimals from 100 on."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def scientific(value: float | None) -> str:
    """Format with two digits."""
    return "–" if value is None else f"{value:.1e}"
