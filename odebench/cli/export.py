"""``odebench export``."""

import argparse

SUMMARY = "send runs to Weights & Biases, MLflow or trackio"
HELP = """\
Send the metrics, settings, results and figures of finished and running runs to a tracker. Training itself needs none.
A second call sends only what is new. Install a tracker from the checkout: pip install -e ".[wandb]", mlflow or trackio.

The tracker's own variables say where to: WANDB_MODE=offline, WANDB_ENTITY, MLFLOW_TRACKING_URI, TRACKIO_DIR, ...

examples:
  odebench export outputs --to mlflow                     to mlflow.db here; a server: MLFLOW_TRACKING_URI=http://...
  odebench export RUN --to wandb --project flows          WANDB_MODE=offline: to wandb/, for wandb sync
  odebench export outputs --to trackio                    to trackio's local store"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("folders", metavar="RUNS", nargs="*", default=[], help="runs, or folders that contain them")
    tracker = parser.add_argument("--to", metavar="TRACKER", required=True, help="wandb, mlflow or trackio")
    tracker.completer = lambda **_: ["wandb", "mlflow", "trackio"]  # type: ignore[attr-defined]
    parser.add_argument("--project", metavar="NAME", default="odebench", help="project or experiment there")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from odebench.reporting.export import export_runs

    export_runs(arguments.folders, arguments.to, arguments.project)
    return 0
