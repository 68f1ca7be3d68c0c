"""The same test series by several runs, in one picture.

    python -m odebench.training.comparison FILE.png "latent ODE, 30 points" RUN "RNN, 30 points" RUN ...

So Chen et al. 2018 show latent ODE and RNN beside each other in their Figure 8.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from odebench.errors import UsageError
from odebench.plots.series import PredictedSeries, model_comparison
from odebench.tasks.time_series import TimeSeriesTask
from odebench.training.inference import load_run

DPI = 150


def compare_runs(runs: Mapping[str, Path | str]) -> Figure:
    """The first test series of each label, as each run's model reconstructs and continues it, in the plane.

    runs: folders by name; see ``model_comparison``. Raises UsageError for runs without weights, that were tested on
    other series than the first, or whose series are not of two channels.
    """
    shown = {name: _examples(folder) for name, folder in runs.items()}
    first = [one.label for one in next(iter(shown.values()), [])]
    for name, series in shown.items():
        if (labels := [one.label for one in series]) != first:
            raise UsageError(f"{runs[name]} was tested on {', '.join(labels)}, the first run on {', '.join(first)}")
    return model_comparison(shown)


def _examples(folder: Path | str) -> list[PredictedSeries]:
    task = load_run(folder).task
    shown = task.examples() if isinstance(task, TimeSeriesTask) else []
    if not shown or shown[0].predictions.shape[-1] != 2:
        raise UsageError(f"{folder}: no model of series in the plane, such as those of data=spirals")
    return shown


def main(words: Sequence[str]) -> int:
    """Draw into a file, the first word, runs that follow by name and folder in turn. Returns the exit code."""
    file, *named = words
    try:
        compare_runs(dict(zip(named[::2], named[1::2], strict=True))).savefig(file, dpi=DPI)
    except UsageError as error:
        print(f"comparison: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
