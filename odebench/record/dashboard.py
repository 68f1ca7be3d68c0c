"""Serve TensorBoard on the runs of one task, named by the settings that vary, and open it on learning curves."""

import contextlib
import functools
import json
import logging
import os
import re
import shlex
import tempfile
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard import main_lib, program

from odebench.config.schema.quantities import QUANTITIES, headlines
from odebench.errors import NothingFoundError, UsageError, unknown_name
from odebench.record import layout
from odebench.record.differences import differences, name_by
from odebench.record.reader import RunOverview, find_runs, read_overview

POLL_S = 10.0
# Beginning of a folder's name: the number of a sweep's job, or the time of a run.
_STAMP = re.compile(r"(\d{4,}|\d\d-\d\d-\d\d-\d+)_")
# The first page. Without stored settings of the browser, charts show all values, also the large NFE of the first steps.
_FIRST_PAGE = """<!doctype html><title>TensorBoard</title><script>
const key = "_tb_global_settings", settings = {ignoreOutliers: false, timeSeriesSettingsPaneOpened: false};
if (!localStorage.getItem(key)) localStorage.setItem(key, JSON.stringify(settings));
location.replace("?QUERY" + location.hash);
</script>"""

log = logging.getLogger(__name__)


def serve(folder: Path, task: str | None, options: Sequence[str]) -> int:
    """Run TensorBoard until it is stopped, and return its exit code.

    task: show runs of this task; None: that of the latest run, with a hint to the others. Raises NothingFoundError if
    there is nothing to show, UsageError if no run is of the task.
    """
    found = _runs_with_events(folder)
    if not found:
        raise NothingFoundError(f"no TensorBoard files in {folder}; `odebench list runs` shows the runs")
    task = _choose_task(found, folder, task)
    runs = [run for run in found if _task(run) == task]
    with tempfile.TemporaryDirectory(prefix="odebench-") as links:
        linked = link_runs(runs, folder, Path(links))
        threading.Thread(target=_link_new_runs, args=(folder, task, Path(links), linked), daemon=True).start()
        main_lib.global_init()
        board = program.TensorBoard(server_class=functools.partial(_make_server, pinned_cards(runs)))
        board.configure(["tensorboard", "--logdir", links, "--window_title", f"{task} in {folder}", *options])
        return int(board.main())


def _runs_with_events(folder: Path) -> list[RunOverview]:
    """Read the runs in a folder and below that TensorBoard can show; damaged ones are left out."""
    runs = []
    for path in find_runs(folder):
        if any(path.glob(layout.EVENT_FILES)):
            with contextlib.suppress(UsageError):
                runs.append(read_overview(path))
    return runs


def _task(run: RunOverview) -> str:
    return str(run.setting("task"))


def _choose_task(runs: Sequence[RunOverview], folder: Path, wanted: str | None) -> str:
    """Return the task to show. Charts of several tasks would mix units, and HParams has the columns of one task."""
    counts = Counter(map(_task, runs))
    chosen = _task(max(runs, key=lambda run: run.time)) if wanted is None else wanted
    if chosen not in counts:
        raise unknown_name("task", chosen, counts, "tasks")
    for task, count in counts.items() if wanted is None else ():
        if task != chosen:
            log.info(
                "not shown: %d of %s; odebench tensorboard %s --task %s", count, task, shlex.quote(str(folder)), task
            )
    return chosen


def link_runs(runs: Sequence[RunOverview], folder: Path, links: Path, linked: Sequence[Path] = ()) -> list[Path]:
    """Make a link to each run, named as TensorBoard shall name it. Returns the folders that have a link.

    linked: folders that have one already. Their names stay, so that their colours do.
    """
    values = differences(runs)
    if len(runs) > 1:
        folder = Path(os.path.commonpath([run.path.parent for run in runs]))  # what all names would begin with
    for place, run in enumerate(runs):
        if run.path in linked:
            continue
        name = _name(run, folder, name_by({key: column[place] for key, column in values.items()}))
        (links / name).parent.mkdir(parents=True, exist_ok=True)
        (links / name).symlink_to(run.path.resolve(), target_is_directory=True)
    return [run.path for run in runs]


def _name(run: RunOverview, folder: Path, differing: str) -> str:
    """Return the path of a run below the folder, whose last part begins with its number or time, or is its own name."""
    path = Path(run.path.resolve().name) if run.path == folder else run.path.relative_to(folder)
    stamp = _STAMP.match(path.name)
    words = [stamp[1] if stamp else path.name, name_by({"": run.setting("name")}).strip("="), differing]
    return str(path.with_name("_".join(filter(None, words)) if any(words[1:]) else path.name))


def _link_new_runs(folder: Path, task: str, links: Path, linked: list[Path]) -> None:
    """Add a link for each run that starts while TensorBoard is open."""
    while True:
        time.sleep(POLL_S)
        with contextlib.suppress(OSError, UsageError):
            if len(find_runs(folder)) != len(linked):
                linked = link_runs(
                    [run for run in _runs_with_events(folder) if _task(run) == task], folder, links, linked
                )


def pinned_cards(runs: Sequence[RunOverview]) -> list[dict[str, str]]:
    """Return the charts on top of TensorBoard's first page: what the runs optimise, and what they cost."""
    objective = Counter(str(run.setting("trainer.objective")) for run in runs).most_common(1)[0][0].partition("/")[2]
    best = {tag.removeprefix("best/"): value for run in runs for tag, value in run.summary.items() if "best/" in tag}
    names = headlines(objective, best or dict.fromkeys(QUANTITIES.get(_task(runs[0]), {})))
    costs = ["nfe/forward", "nfe/backward", "memory/peak_mib", "time/step_ms"]
    return [{"plugin": "scalars", "tag": tag} for tag in [*(f"val/{name}" for name in names[:2]), *costs]]


def _make_server(cards: Sequence[dict[str, str]], app: Any, flags: Any) -> Any:
    """Make TensorBoard's server. Its first page without parameters shows the cards, without smoothing."""
    query = urllib.parse.urlencode({"pinnedCards": json.dumps(cards), "smoothing": 0})
    first_page = _FIRST_PAGE.replace("QUERY", query).encode()

    def respond(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == f"{flags.path_prefix}/" and not environ.get("QUERY_STRING"):
            start_response("200 OK", [("Content-Type", "text/html"), ("Content-Length", str(len(first_page)))])
            return [first_page]
        return app(environ, start_response)

    return program.create_port_scanning_werkzeug_server(respond, flags)
