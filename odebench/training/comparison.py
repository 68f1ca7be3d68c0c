"""Draw one figure with the predictions of several runs for the same test series.

    python -m odebench.training.comparison FILE.png "latent ODE, 30 points" RUN "RNN, 30 points" RUN ...

Figure 8 of Chen et al. 2018 compares latent ODE and RNN in this way.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from odebench.errors import UsageError
from odebench.plots.series import PredictedSeries, model_comparison
from odebench.tasks.time_series import TimeSeriesTask
from odebench.training.trained_run import load_run

DPI = 150


def compare_runs(runs: Mapping[str, Path | str]) -> Figure:
    """Draw the first test series of each label in the plane, reconstructed and extrapolated by the model of each run.

    runs: maps the name of a run in the figure to its folder; see ``model_comparison``. Raises UsageError if a run has
    no weights, was tested on other series than the first run, or if its series do not have two channels.
    """
    examples = {name: _examples(folder) for name, folder in runs.items()}
    first = [example.label for example in next(iter(examples.values()), [])]
    for name, series in examples.items():
        if (labels := [example.label for example in series]) != first:
            raise UsageError(f"{runs[name]} was tested on {', '.join(labels)}, the first run on {', '.join(first)}")
    return model_comparison(examples)


def _examples(folder: Path | str) -> list[PredictedSeries]:
    task = load_run(folder).task
    examples = task.examples() if isinstance(task, TimeSeriesTask) else []
    if not examples or examples[0].predictions.shape[-1] != 2:
        raise UsageError(f"{folder}: not a model of series with two channels, such as data=spirals")
    return examples


def main(arguments: Sequence[str]) -> int:
    """Draw the figure and return the exit code. arguments: FILE, then NAME and FOLDER of each run."""
    file, *named = arguments
    try:
        compare_runs(dict(zip(named[::2], named[1::2], strict=True))).savefig(file, dpi=DPI, bbox_inches="tight")
    except UsageError as error:
        print(f"comparison: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
