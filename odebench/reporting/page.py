"""A report as one self-contained HTML page with sortable tables and embedded figures."""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import NamedTuple

from odebench.reporting.table import Table

SVG_LIMIT_BYTES = 400_000  # larger SVGs are embedded as PNG


class RenderedFigure(NamedTuple):
    """A figure as PNG and SVG bytes, with its name and what it shows."""

    name: str
    description: str
    png: bytes
    svg: bytes


class ReportPage(NamedTuple):
    """Content of the page. reasons: why runs failed -> their folders; left_out: why figures were omitted."""

    title: str
    command: str
    made: str
    notes: Sequence[str]
    table: Table
    published: Table | None
    pictures: Sequence[RenderedFigure]
    left_out: Sequence[str]
    reasons: Mapping[str, Sequence[str]]


def as_html(page: ReportPage) -> str:
    """Render the page."""
    template = Template((files("odebench.reporting") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(page.title),
        command=escape(page.command),
        made=escape(page.made),
        notes=_notes(page.notes),
        table=_table(page.table),
        published=f"<h2>Published values</h2>\n{_table(page.published)}" if page.published else "",
        figures=_figures(page),
        reasons=_reasons(page.reasons),
    )


def _notes(lines: Sequence[str]) -> str:
    return "\n".join(f'<p class="note">{escape(line)}</p>' for line in lines)


def _table(table: Table) -> str:
    kinds = [' class="number"' if column.is_numeric else "" for column in table.columns]
    head = "".join(
        f'<th{kind} title="{escape(column.description)}"><button>{escape(column.title)}</button></th>'
        for column, kind in zip(table.columns, kinds, strict=True)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(
            f'<td{kind} data-value="{_value(cell.value)}">{escape(cell.text)}</td>'
            for cell, kind in zip(row, kinds, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    body = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
    return f'<div class="wide"><table>\n{body}\n</table></div>\n{_notes([table.note] if table.note else [])}'


def _value(value: float | str) -> str:
    if isinstance(value, str):
        return escape(value)
    return "" if math.isnan(value) else repr(value)


def _figures(page: ReportPage) -> str:
    parts = ["<h2>Figures</h2>", '<div class="figures">']
    for one in page.pictures:
        kind, content = ("svg+xml", one.svg) if len(one.svg) < SVG_LIMIT_BYTES else ("png", one.png)
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        caption = f"{escape(one.description)} (<code>{escape(one.name)}</code>)"
        picture = f'<img alt="{escape(one.description)}" src="{source}">'
        parts.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    parts.append("</div>")
    if page.left_out:
        lines = "".join(f"<li>{escape(line)}</li>" for line in page.left_out)
        parts.append(f"<details><summary>Omitted figures</summary><ul>{lines}</ul></details>")
    return "\n".join(parts)


def _reasons(reasons: Mapping[str, Sequence[str]]) -> str:
    if not reasons:
        return ""
    parts = [
        f"<details><summary>{escape(reason)} ({len(paths):,})</summary><ul>"
        + "".join(f"<li><code>{escape(path)}</code></li>" for path in paths)
        + "</ul></details>"
        if paths
        else f"<p>{escape(reason)}</p>"
        for reason, paths in reasons.items()
    ]
    return "\n".join(["<h2>Runs that were not completed</h2>", *parts])
