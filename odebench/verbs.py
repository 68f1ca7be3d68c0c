"""What the command line understands: the verbs, their options, and their help in our own words with examples."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from odebench import __version__
from odebench.completion import complete_figure, complete_kind, complete_reproduction, complete_setting
from odebench.errors import UsageError

_ABOUT = """\
What a neural ODE costs and what it gives, by model, solver, tolerance and gradient mode.

verbs:
  train         train a model
  sweep         train many, on this machine or on a SLURM cluster
  eval          evaluate a finished run, under another solver or tolerance if you like
  predict       write a run's predictions for a split as CSV
  sample        draw samples of a density model
  resume        go on with a run or a sweep that was stopped
  list          what there is to choose from, and the runs made so far
  report        tables, figures and a page of runs and sweeps
  reproduce     a published table or figure: its runs, then ours beside the published numbers
  tensorboard   open the dashboard of a run, or of all runs in a folder
  bench         measure the solver beside the other libraries that are installed
  doctor        what works on this machine and what does not

`odebench VERB --help` explains a verb with examples."""

_TRAIN = """\
Train a model and keep a record of it in a folder under outputs/.

Settings are written KEY=VALUE, in any order. Choices: model, solver, gradient, data, optim, schedule,
experiment (`odebench list models`, `odebench list solvers`, ...). Single settings: tol, seed, device,
trainer.epochs, solver.rtol, optim.lr, ... (`odebench train --cfg` prints all of them).

examples:
  odebench train                                          an ODE-Net on 5,000 MNIST images, no download
  odebench train model=resnet trainer.epochs=3
  odebench train solver=rk4 solver.steps=8 eval_solver=dopri5 eval_tol=1e-5
  odebench train experiment=paper/cnf_density_matching data=potential_1 budget=small
  odebench train -m solver=dopri5,tsit5 tol=1e-2,1e-3     four runs, one after the other
  odebench train model=rknet tol=1e-4 --cfg               print the settings, train nothing"""

_SWEEP = """\
Train once for each combination of values, each job in a process of its own, and end with a table of all.

Values are written in Hydra's grammar: a,b or choice(a,b), range(start,stop,step), glob(pattern) for a group. All jobs
are composed and checked before one starts. They run on this machine, cluster.jobs=N at a time, or as job arrays of a
SLURM cluster (cluster=slurm; `odebench list clusters`). Ctrl-C lets the jobs save and leave; `odebench resume SWEEP`
runs what has not ended.

A file (--file) holds KEY: VALUES lines, or a list of such blocks, each a grid of its own.

examples:
  odebench sweep solver=dopri5,tsit5 tol=1e-2,1e-3        four jobs, one after the other
  odebench sweep "seed=range(0,5)" cluster.jobs=2         two at a time
  odebench sweep "experiment=glob(paper/*)" budget=small --dry-run
  odebench sweep --file grid.yaml cluster=slurm cluster.partition=gpu cluster.gpus=1 cluster.time=8:00:00"""

_EVAL = """\
Evaluate a finished run and print a table. Settings are the run's own, except those given here.

Several values a,b make a study: a row for each combination, with NFE, time, and the error of the model's outputs
against the same model solved by dopri5 at 1e-9 in float64; with --gradients, or several gradient modes, also the
memory of a training step and the errors of its gradient. `odebench report` draws them: --figure figure3,
error-tolerance, nfe-tolerance, gradient-tolerance.

examples:
  odebench eval outputs/2026-11-24/14-03-22-123456_odenet_dopri5
  odebench eval RUN split=test
  odebench eval RUN solver=rk4 solver.steps=8             another solver
  odebench eval RUN tol=1e-5                              another tolerance
  odebench eval RUN tol=1e-1,1e-2,1e-3 solver=dopri5,tsit5,rk4
  odebench eval RUN solver=dopri5,vode_adams --limit 1000
  odebench eval RUN gradient=adjoint,checkpoint,interpolated_adjoint"""

_PREDICT = """\
Write what a run's model says of each sample of a split, as CSV: of an image its label, the prediction and its
probability; of a density's sample the log-likelihood; of a series the forecast beside what was observed, a row a time.

examples:
  odebench predict RUN                                    the validation split, to stdout
  odebench predict RUN split=test --output test.csv"""

_SAMPLE = """\
Draw samples of a density model, as CSV with columns x0, x1, ... to stdout, or to a new file: .csv or .npy, of images
.npy or .png. Settings are the run's own, except those given here.

examples:
  odebench sample RUN --num 1000 --seed 1
  odebench sample RUN --output samples.npy
  odebench sample RUN tol=1e-6 --output digits.png"""

_RESUME = """\
Go on with a run that was stopped (Ctrl-C, a signal, a time limit), from its last checkpoint, in its folder.
Of a sweep, all jobs that have not ended run, and no other; settings of the cluster may change.

examples:
  odebench resume outputs/2026-11-24/14-03-22-123456_odenet_dopri5
  odebench resume outputs/sweeps/2026-11-24/14-03-22-123456
  odebench resume SWEEP cluster.jobs=4"""

_LIST = """\
List what there is to choose from, or the runs in a folder.

examples:
  odebench list models                                    also losses, dynamics, solvers, gradients, data, optim,
                                                          schedules, trainers, experiments, clusters
  odebench list runs                                      those under outputs/
  odebench list runs outputs/sweeps/2026-11-24"""

_REPORT = """\
Put runs and sweeps side by side: one table, grouped by the settings that vary, with mean and standard deviation over
seeds; figures; one HTML page that needs no network. Records are read as they are, also of runs that go on.

Without --output the table goes to the screen (--format csv, markdown or latex: to be piped). A file's suffix says what
it becomes: .csv .md .tex .txt .html, with --figure .png .svg. A new folder gets everything.

examples:
  odebench report outputs
  odebench report outputs/sweeps/2026-11-24 --output sweep_report
  odebench report outputs --columns best/accuracy,final/nfe_forward --output table.tex
  odebench report --list                                  the figures
  odebench report outputs --figure pareto --output pareto.svg"""

_REPRODUCE = """\
Reproduce a published table or figure: train what is missing, then print ours beside the published numbers, with a
verdict for each. The runs are a sweep in outputs/reproduce/NAME-BUDGET; the same command goes on with it, and a sweep
that is done is only read. budget=full is the published training; budget=small, and medium where there is one, less.

Further settings go to every run, as cluster ones do to the sweep: seed=0,1,2 gives each row three runs.
After seed=0 it trains the other two.

examples:
  odebench reproduce --list
  odebench reproduce table1 budget=small
  odebench reproduce table2 seed=0,1,2 cluster.jobs=2
  odebench reproduce figure4 budget=small --dry-run"""

_TENSORBOARD = """\
Start TensorBoard on one run or on all runs in a folder. What follows -- goes to TensorBoard.

examples:
  odebench tensorboard outputs
  odebench tensorboard outputs -- --port 7007 --bind_all"""

_BENCH = """\
Measure the solver beside torchdiffeq, torchode, torchdyn, SciPy and diffrax, as far as they are installed
(from the checkout, `pip install -e ".[peers]"`): time turn by turn, evaluations, errors against a float64 reference,
memory.

works: tiny, mlp, conv, cnf (these four by default), mlp_silu, robertson, vdp, mixed; groups: stiff, all.
modes: forward, backprop, checkpoint, adjoint (by default), interpolated_adjoint, reversible.
The default takes about four minutes on two idle cores and writes to outputs/bench/<date>/<time>.

examples:
  odebench bench
  odebench bench tiny mlp --modes forward,adjoint --peers torchdiffeq
  odebench bench conv --threads 1 --repeats 30 --output results/conv
  odebench bench stiff --modes forward                    Robertson and van der Pol, by the implicit methods
  odebench bench mlp --work-precision --methods dopri5    figures of error against time and evaluations
  odebench bench mlp --compile --peers none               compiled beside eager, no other library"""

_DOCTOR = """\
Check this machine: versions, device, data, compiler, SLURM, disk. One line each, with what to do."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help explains)")


def build_parser() -> argparse.ArgumentParser:
    """The verbs with their options and help; settings are left to Hydra's grammar."""
    parser = _make(_Parser, "odebench", _ABOUT)
    parser.usage = "odebench [-h] [--version] VERB ..."
    parser.add_argument("--version", action="version", version=f"odebench {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", help=argparse.SUPPRESS, required=True)

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return _make(lambda **options: verbs.add_parser(name, **options), f"odebench {name}", text)

    train = verb("train", _TRAIN)
    _add_overrides(train, "settings, such as model=odenet tol=1e-3")
    train.add_argument("-m", "--multirun", action="store_true", help="one run for each combination of values a,b")
    train.add_argument("--cfg", action="store_true", help="print the composed settings as YAML and stop")
    _add_config_dir(train)

    sweep = verb("sweep", _SWEEP)
    _add_overrides(sweep, "settings and their values, such as tol=1e-2,1e-3, and cluster=...")
    sweep.add_argument("--file", metavar="FILE", type=Path, help="settings and their values as YAML")
    sweep.add_argument("--output", metavar="DIR", type=Path, help="a new or empty folder for the sweep")
    sweep.add_argument("--dry-run", action="store_true", help="print the jobs, start none")
    _add_policy(sweep)
    _add_config_dir(sweep)

    evaluate = verb("eval", _EVAL)
    evaluate.add_argument("run", metavar="RUN", help="the folder of a run")
    _add_overrides(evaluate, "settings to change, a,b for several values; split=validation (default), test or train")
    evaluate.add_argument("--limit", metavar="N", type=_whole_number, help="of the split, only its first N samples")
    evaluate.add_argument("--gradients", action="store_true", help="a study, with the errors of the gradient")

    predict = verb("predict", _PREDICT)
    predict.add_argument("run", metavar="RUN", help="the folder of a run")
    _add_overrides(predict, "settings to change, and split=validation (default), test or train")
    predict.add_argument("--output", metavar="FILE", type=Path, help="a new CSV file; by default stdout")

    sample = verb("sample", _SAMPLE)
    sample.add_argument("run", metavar="RUN", help="the folder of a run")
    _add_overrides(sample, "settings to change")
    sample.add_argument("--num", metavar="N", type=_whole_number, default=100, help="how many; by default 100")
    sample.add_argument("--seed", metavar="S", type=_whole_number, default=0, help="of the samples; by default 0")
    sample.add_argument("--output", metavar="FILE", type=Path, help="a new file; by default CSV to stdout")

    resume = verb("resume", _RESUME)
    resume.add_argument("run", metavar="RUN", help="the folder of a run, or of a sweep")
    _add_overrides(resume, "of a sweep: cluster settings to change")
    _add_policy(resume)

    lists = verb("list", _LIST)
    what = lists.add_argument("what", metavar="WHAT", help="models, solvers, ..., or runs")
    what.completer = complete_kind  # type: ignore[attr-defined]
    lists.add_argument("folder", metavar="DIR", nargs="?", help="where to look for runs; by default outputs")
    _add_config_dir(lists)

    reports = verb("report", _REPORT)
    folders = reports.add_argument("folders", metavar="DIR", nargs="*", help="runs, sweeps, or folders of them")
    folders.required = False
    reports.add_argument("--list", action="store_true", help="print the names of the figures")
    drawn = reports.add_argument("--figure", metavar="A,B", help="figures, by name, in place of the table")
    drawn.completer = complete_figure  # type: ignore[attr-defined]
    reports.add_argument("--format", metavar="FORMAT", help="terminal (default), markdown, csv or latex")
    reports.add_argument("--output", metavar="PATH", type=Path, help="a new file, or a new or empty folder")
    reports.add_argument("--columns", metavar="A,B", help="numbers, such as final/test_accuracy, or all")
    reports.add_argument("--split", metavar="SPLIT", default="validation", help="of figures: validation or test")

    reproduction = verb("reproduce", _REPRODUCE)
    name = reproduction.add_argument("name", metavar="NAME", nargs="?", help="of a published table or figure")
    name.required = False
    name.completer = complete_reproduction  # type: ignore[attr-defined]
    _add_overrides(reproduction, "budget=full (default), small, ...; settings of every run, and cluster=...")
    reproduction.add_argument("--list", action="store_true", help="print the names")
    reproduction.add_argument("--output", metavar="DIR", type=Path, help="the folder of its runs")
    reproduction.add_argument("--dry-run", action="store_true", help="print the jobs, start none")
    _add_policy(reproduction)

    board = verb("tensorboard", _TENSORBOARD)
    board.add_argument("folder", metavar="DIR", help="a run, or a folder of runs")

    bench = verb("bench", _BENCH)
    works = bench.add_argument("works", metavar="WORK", nargs="*", help="what is solved")
    works.required = False
    bench.add_argument("--modes", metavar="A,B", help="forward, and gradient modes")
    bench.add_argument("--peers", metavar="A,B", help="the libraries beside it, or none; by default all installed")
    bench.add_argument("--methods", metavar="A,B", help="solvers; by default each work's own")
    bench.add_argument("--tol", metavar="X,Y", help="tolerances (rtol and atol); by default each work's own")
    bench.add_argument(
        "--repeats", metavar="N", type=_whole_number, default=10, help="timed runs of each; by default 10"
    )
    bench.add_argument(
        "--threads", metavar="N", type=_whole_number, help="threads of PyTorch and JAX; by default PyTorch's own"
    )
    bench.add_argument("--compile", action="store_true", help="also with compiled steps")
    bench.add_argument("--output", metavar="DIR", type=Path, help="a new or empty folder")
    bench.add_argument("--work-precision", action="store_true", help="several tolerances, and figures")

    doctor = verb("doctor", _DOCTOR)
    doctor.add_argument("--outputs", metavar="DIR", type=Path, default=Path("outputs"), help="where runs go")
    doctor.add_argument("--data", metavar="DIR", help="the data root; by default $ODEBENCH_DATA")
    return parser


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number is needed, not {text}") from None


def _make(make: Callable[..., argparse.ArgumentParser], prog: str, text: str) -> argparse.ArgumentParser:
    return make(
        prog=prog,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    action = parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=text)
    action.required = False  # argparse means it, but names it among what is missing all the same
    action.completer = complete_setting  # type: ignore[attr-defined]


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fail-fast", action="store_true", help="stop the sweep when a job fails")
    parser.add_argument("--retry", metavar="N", type=_whole_number, default=0, help="try a job that fails N times more")
    parser.add_argument("--follow", action="store_true", help="with SLURM: watch the jobs until they end")


def _add_config_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-dir", metavar="DIR", type=Path, help="a folder of your own YAML, laid out as ours")
