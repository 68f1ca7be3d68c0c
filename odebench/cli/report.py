"""``odebench report``."""

import argparse
from pathlib import Path
from typing import Any

SUMMARY = "compare runs and sweeps in a table, figures and an HTML page"
HELP = """\
Compare runs and sweeps: a table, grouped by the settings that vary, with mean and standard deviation over seeds;
figures; one HTML page that needs no network. Unfinished runs are included.

Without --output the table goes to the screen (for pipes: --format csv, markdown or latex). The suffix of a file chooses
its format: .csv .md .tex .txt .html, with --figure .png .svg .pdf. A new folder gets everything.

examples:
  odebench report outputs
  odebench report outputs/sweeps/2026-11-24 --output sweep_report
  odebench report outputs --columns best/accuracy,final/nfe_forward --output table.tex
  odebench report --list                                  the figures
  odebench report outputs --figure pareto --output pareto.svg
  odebench report outputs --figure pareto --style paper --output pareto.pdf --data pareto.csv"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument(
        "folders", metavar="DIR", nargs="*", default=[], help="runs, sweeps, or folders that contain them"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the figures")
    figures = parser.add_argument("--figure", metavar="A,B", help="names of figures to write instead of the table")
    figures.completer = _complete_figure  # type: ignore[attr-defined]
    parser.add_argument("--format", metavar="FORMAT", help="terminal (default), markdown, csv or latex")
    parser.add_argument("--output", metavar="PATH", type=Path, help="a new file, or a new or empty folder")
    parser.add_argument("--columns", metavar="A,B", help="columns, such as final/test_accuracy, or all")
    parser.add_argument(
        "--split", metavar="SPLIT", default="validation", help="split of the results in figures: validation or test"
    )
    parser.add_argument(
        "--style",
        metavar="STYLE",
        default="screen",
        help="letters and width of figures: screen (default), paper (5.5 in wide) or paper-column (3.25 in); these two "
        "are PDF and SVG",
    )
    parser.add_argument("--data", metavar="FILE", type=Path, help="a new CSV file for the numbers of the one --figure")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from odebench.reporting.report import list_figures, make_report

    if arguments.list:
        list_figures()
        return 0
    make_report(
        arguments.folders,
        arguments.figure,
        arguments.format,
        arguments.output,
        arguments.columns,
        arguments.split,
        arguments.style,
        arguments.data,
    )
    return 0


def _complete_figure(prefix: str, **_: Any) -> list[str]:
    """Complete the names of figures in a shell: the first one, and each one after a comma."""
    from odebench.reporting.figures import FIGURES

    before, comma = prefix.rpartition(",")[:2]
    return [f"{before}{comma}{name}" for name in FIGURES]
