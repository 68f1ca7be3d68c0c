# PYTHON_ARGCOMPLETE_OK
"""The command line: what each verb calls; verbs and options stand in odebench/verbs.py. torch and Hydra are imported
where a verb needs them.

Results go to stdout, progress and log to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage or settings,
3 diverged, 75 stopped by a signal with a checkpoint, 130 stopped by Ctrl-C before there was one.
"""

import argparse
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from odebench.completion import complete
from odebench.console import console_log, report
from odebench.errors import UsageError, did_you_mean, unknown_name
from odebench.verbs import build_parser

if TYPE_CHECKING:
    from odebench.sweep.attempts import Policy


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks ends nothing
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:
        complete(parser)
    verb = words[0] if words and not words[0].startswith("-") else ""
    name = f"odebench {verb}" if verb in _VERBS else "odebench"
    try:
        for word in words:
            if any("\ud800" <= letter <= "\udfff" for letter in word):  # bytes that the system could not read as text
                raise UsageError(f"{word.encode(errors='backslashreplace').decode()}: is not UTF-8; name it otherwise")
        if verb and verb not in _VERBS:
            raise unknown_name("verb", verb, _VERBS, "verbs")
        with console_log():
            code = _run(parser, words)
        sys.stdout.flush()
        return code
    except Exception as error:
        return report(name, error)
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 130


def _run(parser: argparse.ArgumentParser, words: list[str]) -> int:
    tail: list[str] = []
    if "--" in words:
        words, tail = words[: words.index("--")], words[words.index("--") + 1 :]
    try:
        arguments, rest = parser.parse_known_args(words)
    except SystemExit as stop:  # after --help or --version
        return int(stop.code or 0)
    if arguments.verb == "tensorboard":
        arguments.for_tensorboard = tail
    elif tail:
        raise UsageError(f"{tail[0]}: nothing can follow --")
    for name in ("overrides", "works", "folders"):
        if name in arguments:
            # argparse reads a list only up to the first option; what stands after it comes here.
            getattr(arguments, name).extend(word for word in rest if not word.startswith("-"))
            rest = [word for word in rest if word.startswith("-")]
    if rest:
        if not rest[0].startswith("-"):
            raise UsageError(f"{rest[0]} is one word too many")
        raise UsageError(f"unknown option {rest[0]}{_meant(rest[0], parser, arguments)}")
    return _VERBS[arguments.verb](arguments)


def _meant(word: str, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The nearest option, or the nearest setting where the verb takes some: those have no dashes."""
    settings = []
    if "overrides" in arguments:
        from odebench.compose import known_keys

        settings = [*(["split"] if arguments.verb in ("eval", "predict") else []), *known_keys()]
    options = {option.lstrip("-"): option for option in _options(parser, arguments.verb)}
    hint = did_you_mean(word.partition("=")[0].lstrip("-"), [*options, *settings])
    near = hint.removeprefix("; did you mean ").removesuffix("?")
    if near in options:
        return f"; did you mean {options[near]}?"
    return f"; did you mean {near}=...? settings have no dashes" if near else ""


def _options(parser: argparse.ArgumentParser, verb: str) -> list[str]:
    verbs = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return list(verbs.choices[verb]._option_string_actions)


def _train(arguments: argparse.Namespace) -> int:
    if arguments.multirun:
        from odebench.multirun import run_multirun

        if arguments.cfg:
            raise UsageError("--cfg prints the settings of one run; leave -m out")
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise UsageError(
                "-m: torchrun's processes train one model together; leave -m out, or start without torchrun"
            )
        return run_multirun(arguments.overrides, arguments.config_dir)
    from odebench.settings import compose, read_settings

    config = compose(arguments.overrides, arguments.config_dir)
    if arguments.cfg:
        from omegaconf import OmegaConf

        sys.stdout.write(OmegaConf.to_yaml(config))
        read_settings(config)
        return 0
    read_settings(config)  # a wrong setting is told before torch is imported
    from odebench.training.run import train_run

    return train_run(config, arguments.overrides).exit_code


def _split(overrides: list[str]) -> tuple[str, list[str]]:
    """The split named among the overrides, and the other overrides."""
    from odebench.record.schema import SPLITS

    split = SPLITS[0]
    for word in overrides:
        if word.startswith("split="):
            split = word.removeprefix("split=")
            if split not in SPLITS:
                raise unknown_name("split", split, SPLITS, "splits")
    return split, [word for word in overrides if not word.startswith("split=")]


def _check_run(path: str) -> Path:
    """The folder of a run; UsageError where it is none, before torch is imported."""
    from odebench.record.reader import read_run

    return read_run(path, metrics=False).path


def _eval(arguments: argparse.Namespace) -> int:
    from odebench.sweep.expand import expand

    run = _check_run(arguments.run)
    split, overrides = _split(arguments.overrides)
    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError(f"--limit {arguments.limit}: must be at least 1")
    combinations = expand([overrides], _config_dir_of(run), is_sweep=False)
    if len(combinations) > 1 or arguments.gradients:
        from odebench.training.study import study_run

        study_run(run, combinations, split, arguments.limit, arguments.gradients)
        return 0
    from odebench.training.trained import evaluate_run

    evaluate_run(run, overrides, split, arguments.limit)
    return 0


def _config_dir_of(run: Path) -> Path | None:
    """The user's folder of YAML that a run was made with."""
    from odebench.record.reader import read_run

    found = read_run(run, metrics=False).settings.get("config_dir")
    return None if found is None else Path(found)


def _predict(arguments: argparse.Namespace) -> int:
    run = _check_run(arguments.run)
    split, overrides = _split(arguments.overrides)
    from odebench.training.trained import predict_run

    predict_run(run, overrides, split, arguments.output)
    return 0


def _sample(arguments: argparse.Namespace) -> int:
    run = _check_run(arguments.run)
    from odebench.training.trained import sample_run

    sample_run(run, arguments.overrides, arguments.num, arguments.seed, arguments.output)
    return 0


def _policy(arguments: argparse.Namespace) -> "Policy":
    from odebench.sweep.attempts import Policy

    if arguments.retry < 0:
        raise UsageError(f"--retry {arguments.retry}: must be at least 0")
    return Policy(arguments.fail_fast, arguments.retry)


def _sweep(arguments: argparse.Namespace) -> int:
    from odebench.sweep.folder import free_folder
    from odebench.sweep.run import plan_sweep, print_plan, run_sweep

    policy = _policy(arguments)
    plan = plan_sweep(arguments.overrides, arguments.file, arguments.config_dir)
    if arguments.dry_run:
        free_folder(arguments.output, plan.outputs)
        print_plan(plan)
        return 0
    return run_sweep(plan, arguments.output, policy, arguments.follow)


def _resume(arguments: argparse.Namespace) -> int:
    from odebench.sweep.folder import is_sweep

    if is_sweep(Path(arguments.run)):
        from odebench.sweep.run import resume_sweep

        return resume_sweep(Path(arguments.run), arguments.overrides, _policy(arguments), arguments.follow)
    run = _check_run(arguments.run)
    if arguments.overrides:
        raise UsageError(
            f"{arguments.overrides[0]}: the settings of a run are fixed; "
            f"train another from its weights: odebench train KEY=VALUE init_from={shlex.quote(arguments.run)}"
        )
    from odebench.training.run import resume_run

    return resume_run(run).exit_code


def _list(arguments: argparse.Namespace) -> int:
    from odebench.listing import KINDS, list_options, list_runs

    if arguments.what not in KINDS:
        raise UsageError(
            f"nothing to list called {arguments.what}{did_you_mean(arguments.what, KINDS)} ({', '.join(KINDS)})"
        )
    if arguments.what == "runs":
        if arguments.folder is None and not Path("outputs").exists():
            print("odebench list: no runs yet: they go to outputs/", file=sys.stderr)
            return 0
        list_runs(Path(arguments.folder or "outputs"))
    elif arguments.folder is not None:
        raise UsageError(f"{arguments.folder}: a folder goes with `list runs` only")
    else:
        list_options(arguments.what, arguments.config_dir)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from odebench.reporting.report import list_figures, make_report, read_request

    if arguments.list:
        list_figures()
        return 0
    make_report(
        read_request(
            arguments.folders,
            arguments.figure,
            arguments.format,
            arguments.output,
            arguments.columns,
            arguments.split,
        )
    )
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    from odebench.reproduce.run import list_reproductions, plan_reproduction, run_reproduction
    from odebench.sweep.run import print_plan

    if arguments.list:
        list_reproductions()
        return 0
    reproduction = plan_reproduction(arguments.name, arguments.overrides, arguments.output)
    if arguments.dry_run:
        print_plan(reproduction.plan)
        return 0
    return run_reproduction(reproduction, _policy(arguments), arguments.follow)


def _tensorboard(arguments: argparse.Namespace) -> int:
    from odebench.record.schema import EVENTS

    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if next(folder.rglob(EVENTS), None) is None:
        raise UsageError(f"{folder}: no TensorBoard files here or below; `odebench list runs` shows the runs")
    sys.stdout.flush()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), *arguments.for_tensorboard]
    os.execv(command[0], command)


def _bench(arguments: argparse.Namespace) -> int:
    from odebench.bench.run import make_plan, run_bench

    plan = make_plan(
        arguments.works,
        arguments.modes,
        arguments.peers,
        arguments.methods,
        arguments.tol,
        arguments.repeats,
        arguments.compile,
        arguments.work_precision,
    )
    return run_bench(plan, arguments.output, arguments.threads, sys.argv)


def _doctor(arguments: argparse.Namespace) -> int:
    from odebench.doctor import examine

    return examine(arguments.outputs, arguments.data)


_VERBS = {
    "train": _train,
    "sweep": _sweep,
    "eval": _eval,
    "predict": _predict,
    "sample": _sample,
    "resume": _resume,
    "list": _list,
    "report": _report,
    "reproduce": _reproduce,
    "tensorboard": _tensorboard,
    "bench": _bench,
    "doctor": _doctor,
}
