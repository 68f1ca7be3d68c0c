"""``odebench report``: from folders to a table on the screen, one file, or a folder with all there is."""

import io
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from odebench.errors import UsageError, unknown_name
from odebench.record.files import refuse_folder, write_atomically
from odebench.reporting import figures, notes, page, table
from odebench.reporting.runs import Evidence, gather

log = logging.getLogger(__name__)

FORMATS = ("terminal", "markdown", "csv", "latex")
# What a file's suffix says of its content.
TABLE_SUFFIXES = {".txt": "terminal", ".md": "markdown", ".csv": "csv", ".tex": "latex"}
FIGURE_SUFFIXES = (".png", ".svg")
PAGE_SUFFIX = ".html"
PAGE = "report.html"
DPI = 150


@dataclass(frozen=True)
class Request:
    """What the user asks for. columns: tags with commas between, "all", or None for the usual ones."""

    folders: Sequence[Path]
    figures: Sequence[str]
    form: str | None
    output: Path | None
    columns: str | None
    split: str


def read_request(
    folders: Sequence[str], figure: str | None, form: str | None, output: Path | None, columns: str | None, split: str
) -> Request:
    """The request in the words of the command line. Raises UsageError for what is unknown or does not go together."""
    if not all(folders) or not folders:
        raise UsageError("which runs? name one folder or several, such as outputs (--list shows the figures)")
    names = list(dict.fromkeys(filter(None, (figure or "").split(","))))
    for name in names:
        if name not in figures.FIGURES:
            raise unknown_name("figure", name, figures.FIGURES, "figures")
    if split not in ("validation", "test"):
        raise unknown_name("split", split, ("validation", "test"), "splits")
    if form is not None and form not in FORMATS:
        raise unknown_name("format", form, FORMATS, "formats")
    if output is not None:
        _check_output(output, form, names)
    elif names:
        raise UsageError("--figure draws into files; add --output FILE.png, FILE.svg or a new folder")
    return Request([Path(folder) for folder in folders], names, form, output, columns, split)


def _check_output(output: Path, form: str | None, names: Sequence[str]) -> None:
    """Nothing is overwritten, and a file's suffix says what goes into it."""
    suffix, shown = output.suffix, f"--output {output}"
    if form is not None and (names or TABLE_SUFFIXES.get(suffix) != form):
        suffixes = [one for one, content in TABLE_SUFFIXES.items() if content == form]
        raise UsageError(f"--format {form} goes to the screen, or with --output FILE{suffixes[0]}")
    if suffix and suffix not in (*TABLE_SUFFIXES, *FIGURE_SUFFIXES, PAGE_SUFFIX):
        known = ", ".join((*TABLE_SUFFIXES, PAGE_SUFFIX, *FIGURE_SUFFIXES))
        raise UsageError(f"{shown}: a file ends with {known}; a folder has no suffix")
    if suffix and output.exists():
        raise UsageError(f"{shown} exists; name a new file")
    if suffix in FIGURE_SUFFIXES and len(names) != 1:
        raise UsageError(f"{shown} holds one figure; name it: --figure NAME (--list shows them), or give a folder")
    if suffix and suffix not in FIGURE_SUFFIXES and names:
        raise UsageError(f"{shown} holds no figure; give FILE.png, FILE.svg or a folder")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{shown} is a file; name a folder")
    if output.is_dir() and any(output.iterdir()):
        raise UsageError(f"{shown} is not empty; a report goes into a folder of its own")
    refuse_folder(output.parent if suffix else output, shown)


def list_figures() -> None:
    """Print name and content of every figure."""
    width = max(map(len, figures.FIGURES))
    for name, figure in figures.FIGURES.items():
        print(f"{name:<{width}}  {figure.shows}")


def make_report(request: Request) -> None:
    """Read the runs, and print or write what is asked for. Raises UsageError where they cannot give it."""
    evidence = gather(request.folders, request.split)
    if request.figures:
        assert request.output is not None
        drawn = [draw_picture(name, evidence) for name in request.figures]
        _written(write_figures(request.output, drawn))
        return
    if not evidence.runs:
        raise UsageError(_nothing_in(evidence))
    tags = table.chosen_tags(evidence, request.columns)
    if request.output is None:
        _print(evidence, request.form or "terminal", tags)
    elif request.output.suffix:
        _written([_write_file(request.output, evidence, tags)])
    else:
        _written(write_folder(request.output, evidence, tags))


def _nothing_in(evidence: Evidence) -> str:
    where = ", ".join(map(str, evidence.folders))
    if evidence.queued or evidence.damaged:
        return f"no run in {where} has begun and can be read ({notes.counted(evidence)})"
    return f"no runs in {where}; make one: odebench train"


def _print(evidence: Evidence, form: str, tags: Sequence[str]) -> None:
    sys.stdout.write(as_text(evidence, form, tags))
    lines = [notes.counted(evidence), *notes.cautions(evidence), *notes.reason_lines(evidence)]
    if form != "terminal":  # the table alone, to be piped
        print(notes.spoken(lines), end="", file=sys.stderr)
        return
    print(f"\n{notes.spoken(lines)}", end="")
    if published := notes.published_table(evidence):
        print(f"\n{table.as_terminal(published)}", end="")


def as_text(evidence: Evidence, form: str, tags: Sequence[str]) -> str:
    """The table in one of FORMATS."""
    if form == "csv":
        return table.as_csv(evidence, tags)
    render = {"terminal": table.as_terminal, "markdown": table.as_markdown, "latex": table.as_latex}[form]
    return render(table.make_table(evidence, tags))


def _write_file(path: Path, evidence: Evidence, tags: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == PAGE_SUFFIX:
        return _write(path, as_page(evidence, *draw_all(evidence)))
    return _write(path, as_text(evidence, TABLE_SUFFIXES[path.suffix], tags))


def write_folder(folder: Path, evidence: Evidence, tags: Sequence[str]) -> list[Path]:
    """The page, the table in every form, and each figure that the runs can give."""
    pictures, left_out = draw_all(evidence)
    folder.mkdir(parents=True, exist_ok=True)
    written = [_write(folder / PAGE, as_page(evidence, pictures, left_out))]
    for suffix, form in TABLE_SUFFIXES.items():
        chosen = table.all_tags(evidence) if form == "csv" else tags
        written.append(_write(folder / f"table{suffix}", as_text(evidence, form, chosen)))
    written += write_figures(folder / "figures", pictures) if pictures else []
    if left_out:
        log.info("figures left out: %s (%s has what each needs)", ", ".join(left_out), folder / PAGE)
    return written


def _write(path: Path, text: str) -> Path:
    write_atomically(path, text.encode())
    return path


def _written(paths: Sequence[Path]) -> None:
    for path in paths:
        print(path)


def as_page(evidence: Evidence, pictures: Sequence[page.Picture], left_out: Mapping[str, str]) -> str:
    """The page, with every number in its table, the usual ones first."""
    names = ", ".join(folder.resolve().name for folder in evidence.folders)
    tags = dict.fromkeys([*table.headline_tags(evidence), *table.all_tags(evidence)])
    return page.as_html(
        page.Page(
            title=f"Runs of {names}",
            command=shlex.join(["odebench", *sys.argv[1:]]),
            made=f"{datetime.now():%Y-%m-%d %H:%M}",
            notes=[notes.counted(evidence), *notes.cautions(evidence)],
            table=table.make_table(evidence, [*tags]),
            published=notes.published_table(evidence),
            pictures=pictures,
            left_out=list(left_out.values()),
            reasons=dict(notes.reasons(evidence)),
        )
    )


def draw_all(evidence: Evidence) -> tuple[list[page.Picture], dict[str, str]]:
    """Each figure that the runs can give, and by name why the others are left out."""
    pictures, left_out = [], {}
    for name in figures.FIGURES:
        try:
            pictures.append(draw_picture(name, evidence))
        except UsageError as error:
            left_out[name] = str(error)
    return pictures, left_out


def draw_picture(name: str, evidence: Evidence) -> page.Picture:
    """A figure as PNG and SVG. Raises UsageError where the runs cannot give it."""
    figure = figures.draw(name, evidence)
    with matplotlib.rc_context({"svg.hashsalt": name}):  # the same runs give the same bytes
        png, svg = (_saved(figure, form) for form in ("png", "svg"))
    return page.Picture(name, figures.FIGURES[name].shows, png, svg)


def _saved(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=DPI, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def write_figures(output: Path, pictures: Sequence[page.Picture]) -> list[Path]:
    """The figures as NAME.png and NAME.svg in a folder, or one of them as the file that is named."""
    named = {output / f"{one.name}{suffix}": getattr(one, suffix[1:]) for one in pictures for suffix in FIGURE_SUFFIXES}
    if output.suffix:
        named = {output: getattr(pictures[0], output.suffix[1:])}
    for path, content in named.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return list(named)
