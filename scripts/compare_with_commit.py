"""Compare the runs of this checkout with those of another commit, bit for bit: a safety net for refactorings.

    python scripts/compare_with_commit.py COMMIT [--keep FOLDER] [--only NAME ...]

Both versions of the code ("trees") train the same tiny models from the same seed, on one CPU thread, once to the end
and once until a SIGTERM. All files of a run must be equal, except times and other values that change from process to
process (``IGNORED``). Then both trees evaluate, resume and report runs that COMMIT made, and the results must be equal.

The script prints one line for each check and exits with 1 if anything differs. It uses nothing of odebench but the
command line and the files of a run, so modules may move. All checks take about five minutes on two cores.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from google.protobuf.text_format import MessageToString
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

ROOT = Path(__file__).resolve().parents[1]

# Every training takes six steps in two epochs. Trainings that are stopped end after the fourth step.
STOP_AFTER = 4
INTERRUPTED = 75  # exit code of a run that a signal has stopped
COMMON = "seed=1 device=cpu trainer.threads=1 trainer.log_every=1 eval_tol=1e-4"
IMAGES = (
    "model=odenet model.width=8 model.groups=4 data.train_limit=48 data.validation=40 trainer.batch_size=16 "
    "trainer.epochs=2"
)
POINTS = (
    "data.samples=96 data.validation=100 data.test=100 trainer.batch_size=32 trainer.eval_batch_size=100 "
    "trainer.iterations=6 eval_solver=dopri5"
)
CNF = "model=cnf model.width=8 model.hidden=8 model.end_time=1 tol=1e-3"
SERIES = "data.train_limit=60 data.validation=20 trainer.batch_size=20 trainer.epochs=2"

# Trainings that cover the tasks and gradient modes. For each, both trees also evaluate a finished run and resume an
# interrupted one.
TASKS = {
    "classification_adjoint": f"gradient=adjoint {IMAGES}",
    "classification_backprop": f"solver=rk4 solver.steps=2 eval_solver=dopri5 gradient=backprop optim=sgd {IMAGES}",
    "cnf": f"{CNF} {POINTS}",
    "ffjord": f"experiment=ffjord/toy model.dims=[8,8] tol=1e-3 {POINTS}",
    "flow_matching": f"experiment=flow_matching/toy model.dims=[8,8] loss.coupling=optimal_transport tol=1e-3 {POINTS}",
    "latent_ode": f"model=latent_ode gradient=checkpoint {SERIES}",
    "ode_rnn": f"model=ode_rnn model.width=8 model.field_units=8 model.gate_units=8 {SERIES}",
    "poisson": f"experiment=paper/poisson data.series=300 data.level=5 model.encoder_width=8 {SERIES}",
}
# Trainings that cover further ways to solve; their runs are not evaluated or resumed.
VARIANTS = {
    "ffjord_hutchinson": (
        f"experiment=ffjord/toy model.dims=[8,8] model.trace=hutchinson dynamics=rnode tol=1e-3 {POINTS}"
    ),
    "checkpoint": f"model.augment=1 solver=tsit5 gradient=checkpoint trainer.average=0.9 {IMAGES}",
    "interpolated_adjoint": f"gradient=interpolated_adjoint schedule=cosine {IMAGES}",
    "reversible": f"solver=reversible_tsit5 gradient=reversible {IMAGES}",
    "per_sample": f"{CNF} solver.stepping=per_sample gradient=checkpoint {POINTS}",
    "implicit": f"{CNF} loss=density_matching data=potential_1 solver=kvaerno3 gradient=backprop {POINTS}",
    "latent_ode_rubanova": (
        "model=latent_ode model.encoder=ode_rnn model.encoder_step=0.1 data=periodic loss.combine=logsumexp "
        f"loss.reduction=mean {SERIES}"
    ),
}
# (run, name) -> a further command on a finished run. It adds to evaluations.jsonl, or writes the file after --output.
STUDY = "solver=dopri5,dopri8,bosh3,adams,implicit_adams,rk4,kvaerno5,radauIIA3,rodas4,alf,vode_adams"
MORE = {
    ("classification_adjoint", "predict"): "predict OLD --output OLD.predicted.csv",
    ("cnf", "study"): f"eval OLD {STUDY} --limit 50",
    ("ffjord", "sample"): "sample OLD --num 20 --output OLD.samples.csv",
    ("latent_ode", "predict"): "predict OLD --output OLD.predicted.csv",
    ("ode_rnn", "study"): "eval OLD gradient=backprop,checkpoint tol=1e-2,1e-4",
}

# Keys whose values differ between two runs of the same code. Only the keys are compared.
IGNORED = re.compile(
    r"(.*[./:])?("
    r"time|started|elapsed_s"  # the clock
    r"|minutes|\w*_ms|(\w+_)?samples_per_s"  # durations and speeds
    r"|pid|began"  # the process
    r"|git\.\w+|versions\.odebench|command\.0"  # the code and where it lies
    r")"
)
IGNORED_TEXT = re.compile(r"[\d,.]+ samples/s")  # inside a line of text
# log.txt has names of modules, and times. curves.png shows metrics.jsonl, with times. report.html has its date.
IGNORED_FILES = re.compile(r"log\.txt|curves\.png|report\.html")

# Suffix of a file -> function that converts its text to nested values.
PARSERS: dict[str, Callable[[str], Any]] = {
    ".json": json.loads,
    ".jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
    **dict.fromkeys((".yaml", ".yml"), yaml.safe_load),
    **dict.fromkeys((".txt", ".csv", ".md", ".tex"), str.splitlines),
}
# A process that sends itself SIGTERM after an optimiser step, so that it stops at the same step each time.
STOPPED_PYTHON = f"""
import os, runpy, signal
from torch.optim.optimizer import register_optimizer_step_post_hook
steps = []
def count(*_):
    steps.append(None)
    if len(steps) == {STOP_AFTER}:
        os.kill(os.getpid(), signal.SIGTERM)
register_optimizer_step_post_hook(count)
runpy.run_module("odebench", run_name="__main__", alter_sys=True)
"""

Content = dict[str, Any]  # FILE:KEY.KEY -> the value, or a digest of it


def main() -> int:
    """Run everything in both trees, print a line for each check, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="the commit to compare with, such as HEAD or main")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="a new folder that keeps all runs")
    parser.add_argument("--only", metavar="NAME", nargs="+", help="only these trainings", choices=[*TASKS, *VARIANTS])
    arguments = parser.parse_args()
    if arguments.keep and arguments.keep.exists():
        parser.error(f"--keep {arguments.keep} exists; name a new folder")
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree is removed
    with tempfile.TemporaryDirectory(prefix="compare-") as temporary:
        worktree = Path(temporary).resolve() / "tree"
        git("worktree", "add", "--quiet", "--detach", str(worktree), arguments.commit)
        try:
            folder = (arguments.keep or Path(temporary) / "runs").resolve()
            trees = Tree("base", worktree, folder / "base"), Tree("ours", ROOT, folder / "ours")
            names = [name for name in (*TASKS, *VARIANTS) if name in (arguments.only or (*TASKS, *VARIANTS))]
            checks, differing = compare(*trees, names)
        finally:
            git("worktree", "remove", "--force", str(worktree))
    print(f"{checks} checks in {time.monotonic() - started:.0f} s: {differing or 'none'} differ")
    return int(differing > 0)


def git(*words: str) -> None:
    """Run git in this checkout."""
    subprocess.run(["git", "-C", str(ROOT), *words], check=True)


@dataclass(frozen=True)
class Tree:
    """One of the two checkouts, and the folder in which its commands run."""

    name: str
    code: Path
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        found = subprocess.run(
            [sys.executable, "-c", "import odebench; print(odebench.__file__)"],
            **(self.options() | {"stdout": subprocess.PIPE, "text": True, "check": True}),
        ).stdout
        if not Path(found).is_relative_to(self.code):
            raise SystemExit(f"Python imports {found.strip()}, not the code in {self.code}")

    def options(self) -> dict[str, Any]:
        """Arguments of subprocess functions that use this tree's code and one thread."""
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return {"cwd": self.folder, "env": {**os.environ, **one_thread, "PYTHONPATH": str(self.code)}}


@dataclass(frozen=True)
class Job:
    """One command: its tree, its name, the words after ``odebench``, and its expected exit code."""

    tree: Tree
    name: str
    words: Sequence[str]
    python: Sequence[str] = ("-m", "odebench")
    expected: int = 0

    def run(self) -> str:
        """Run the command to its end. Returns what went wrong, or ""."""
        printed = self.tree.folder / f"{self.name.replace(' ', '_')}.txt"
        with open(printed, "wb") as out:
            command = [sys.executable, *self.python, *self.words]
            code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, **self.tree.options()).returncode
        if code == self.expected:
            return ""
        last = printed.read_text(errors="replace").splitlines()[-1:] or [""]
        return f"exit code {code}, expected {self.expected} ({last[0]})"


@dataclass
class Report:
    """Prints one line for each check, and counts the checks and the differences."""

    checks: int = 0
    differing: int = 0
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def check(self, name: str, base: Content, ours: Content) -> None:
        """Print whether the contents of both trees are the same, and the exit codes of the jobs with this name."""
        if failed := self.failures.get(("base", name)):
            raise SystemExit(f"{name}: fails in the base tree: {failed}")
        found = list(differences(base, ours))
        if failed := self.failures.get(("ours", name)):
            found.insert(0, failed)
        self.checks += 1
        self.differing += bool(found)
        print(f"{name:<32} {'DIFFERS: ' + '; '.join(found) if found else 'same'}", flush=True)


def compare(base: Tree, ours: Tree, names: Sequence[str]) -> tuple[int, int]:
    """Run all checks of the named trainings. Returns the number of checks, and how many of them differ."""
    report, trees = Report(), (base, ours)
    tasks = [name for name in names if name in TASKS]

    for name in names:
        run_all(report, [train(tree, name, f"runs/{name}") for tree in trees])
        report.check(f"train {name}", *(record(tree.folder / "runs" / name) for tree in trees))

    for name in tasks:
        run_all(report, [train(tree, name, f"stopped/{name}", "stop") for tree in trees])
        report.check(f"stop {name}", *(record(tree.folder / "stopped" / name) for tree in trees))
        # From here on, both trees use runs that the base tree made.
        shutil.rmtree(ours.folder / "stopped" / name, ignore_errors=True)
        shutil.copytree(base.folder / "stopped" / name, ours.folder / "stopped" / name)
        for tree in trees:
            shutil.copytree(base.folder / "runs" / name, tree.folder / "old" / name)
    jobs = [Job(tree, f"eval {name}", ["eval", f"old/{name}"]) for name in tasks for tree in trees]
    jobs += [Job(tree, f"resume {name}", ["resume", f"stopped/{name}"]) for name in tasks for tree in trees]
    run_all(report, jobs)
    for name in tasks:
        report.check(f"eval {name}", *(files(tree.folder / "old" / name) for tree in trees))
        report.check(f"resume {name}", *(record(tree.folder / "stopped" / name) for tree in trees))

    more = {key: words.replace("OLD", f"old/{key[0]}").split() for key, words in MORE.items() if key[0] in tasks}
    run_all(report, [Job(tree, f"{how} {name}", words) for (name, how), words in more.items() for tree in trees])
    for name, how in more:
        report.check(f"{how} {name}", *(files(tree.folder / "old", f"{name}*") for tree in trees))

    if tasks:
        # Both trees read the same runs, so even the times in reports are the same.
        words = ["report", *(str(base.folder / kind) for kind in ("old", "stopped")), "--output"]
        run_all(report, [Job(tree, "report", [*words, str(tree.folder / "report")]) for tree in trees])
        report.check("report", *(files(tree.folder / "report") for tree in trees))
    return report.checks, report.differing


def train(tree: Tree, name: str, folder: str, stop: str = "") -> Job:
    """Make a job that trains into a folder. stop: if it stops after some steps, the first word of its name, else ""."""
    words = ["train", *f"{(TASKS | VARIANTS)[name]} {COMMON} run_dir={folder}".split()]
    if stop:
        return Job(tree, f"{stop} {name}", words, ("-c", STOPPED_PYTHON), INTERRUPTED)
    return Job(tree, f"train {name}", words)


def run_all(report: Report, jobs: Sequence[Job]) -> None:
    """Run the jobs, two at a time, and note those that fail."""
    with ThreadPoolExecutor(2) as pool:
        for job, failed in zip(jobs, pool.map(Job.run, jobs), strict=True):
            if failed:
                report.failures[job.tree.name, job.name] = failed


def record(folder: Path) -> Content:
    """Read the content of all files of a run."""
    content = files(folder)
    if folder.is_dir():
        content |= flat("TensorBoard", events(folder))
    for path in folder.glob("checkpoints/*.pt"):
        name = f"checkpoints/{path.name}"
        content |= flat(name, torch.load(path, map_location="cpu", weights_only=True))
    return content


def files(folder: Path, pattern: str = "*") -> Content:
    """Read all files that match the pattern: values in JSON and YAML, other text, digests of pictures."""
    content: Content = {}
    found = [path for top in folder.glob(pattern) for path in (top, *top.rglob("*"))]
    for path in sorted(path for path in found if path.is_file()):
        name = re.sub(r"tfevents\..*", "tfevents", str(path.relative_to(folder)))
        content[name] = "there"
        if IGNORED_FILES.fullmatch(path.name):
            continue
        if path.suffix in PARSERS:
            content |= flat(name, PARSERS[path.suffix](path.read_text()))
        elif path.suffix in (".png", ".gif", ".svg"):
            content[f"{name}:"] = digest(path.read_bytes())
    return content


def events(folder: Path) -> dict[str, Any]:
    """Read TensorBoard's scalars, histograms and texts, the tags of images, and the columns of the HParams table."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 1})
    accumulator.Reload()
    tags = accumulator.Tags()
    found: dict[str, Any] = {"tags": {kind: sorted(tags[kind]) for kind in ("scalars", "histograms", "images")}}
    for tag in tags["scalars"]:
        found[tag] = "ignored" if IGNORED.fullmatch(tag) else [(e.step, e.value) for e in accumulator.Scalars(tag)]
    for tag in tags["histograms"]:
        found[tag] = [(e.step, e.histogram_value) for e in accumulator.Histograms(tag)]
    for tag in tags["tensors"]:
        if tag.startswith("_hparams_/"):
            found[tag] = hparams(accumulator.SummaryMetadata(tag).plugin_data.content)
        else:
            found[tag] = [(event.step, str(event.tensor_proto)) for event in accumulator.Tensors(tag)]
    return found


def hparams(content: bytes) -> list[str]:
    """Convert one part of the HParams table's data to lines of text, without its time."""
    data = HParamsPluginData.FromString(content)
    for part, moment in (
        ("experiment", "time_created_secs"),
        ("session_start_info", "start_time_secs"),
        ("session_end_info", "end_time_secs"),
    ):
        if data.HasField(part):  # otherwise ClearField would create this part and drop the existing one
            getattr(data, part).ClearField(moment)
    return MessageToString(data).splitlines()


def flat(name: str, value: Any) -> Content:
    """Flatten nested dicts and lists to NAME:KEY.KEY -> leaf; values that differ from run to run become "ignored"."""
    return {key: "ignored" if IGNORED.fullmatch(key) else leaf for key, leaf in leaves(f"{name}:", value)}


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and the leaves; tensors become digests, and empty containers are leaves."""
    if isinstance(value, Mapping | list | tuple) and value:
        for name, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from leaves(f"{key}{'' if key.endswith(':') else '.'}{name}", part)
    elif isinstance(value, torch.Tensor):
        numbers = value.detach().contiguous().reshape(-1)
        yield key, f"{value.dtype} {tuple(value.shape)} {digest(numbers.view(torch.uint8).numpy().tobytes())}"
    elif isinstance(value, str):
        yield key, IGNORED_TEXT.sub("ignored", value)
    else:
        yield key, repr(value)


def digest(content: bytes) -> str:
    """The first characters of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def differences(base: Content, ours: Content) -> Iterator[str]:
    """Yield a text for each file that differs and each kind of difference: the first key, and the number of others."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key in dict.fromkeys([*base, *ours]):
        if key not in ours or key not in base:
            kind = said = "only in base" if key in base else "only in ours"
        elif base[key] != ours[key]:
            kind, said = "changed", f"{short(base[key])} is now {short(ours[key])}"
        else:
            continue
        groups.setdefault((key.partition(":")[0], kind), []).append(f"{key} {said}")
    for first, *others in groups.values():
        yield first + (f" (and {len(others)} more)" if others else "")


def short(value: Any) -> str:
    """Format a value as one line, shortened if necessary."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


if __name__ == "__main__":
    sys.exit(main())
