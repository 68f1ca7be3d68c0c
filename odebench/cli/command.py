"""Parse the command line and run one command."""

import argparse
import importlib
import io
import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from odebench import __version__
from odebench.cli.completion import complete
from odebench.console import broken, console_log, report_error, terminal_width
from odebench.errors import DONE, UsageError, did_you_mean, nearest_setting, unknown_name

# Each command is a module with SUMMARY, HELP, add_options(parser) and run(arguments) -> exit code. A dict instead of
# imported names, because modules called `list` and `eval` would hide the builtins here.
COMMANDS = {
    name: importlib.import_module(f"odebench.cli.{name}")
    for name in (
        "train",
        "sweep",
        "eval",
        "predict",
        "sample",
        "resume",
        "list",
        "report",
        "export",
        "reproduce",
        "tensorboard",
        "bench",
        "doctor",
    )
}

_ABOUT = """\
What a neural ODE costs and what it gives, by model, solver, tolerance and gradient mode.

commands:
{commands}

exit codes: 0 done, 1 failed or no runs found, 2 wrong usage or settings, 3 diverged, 75 stopped with a checkpoint,
130 stopped without one

`odebench COMMAND --help` explains a command with examples."""


_CONFIG_HINT = "choose options as in experiment=paper/mnist_odenet; --config-dir DIR adds your own YAML"
# Options of Hydra's programs -> what to write instead.
_HYDRA_OPTIONS = {
    **dict.fromkeys(("--config-name", "-cn", "--config-path", "-cp"), _CONFIG_HINT),
    "-cd": "write --config-dir DIR",
    "-c": "write --cfg",
    **dict.fromkeys(("-m", "--multirun"), "odebench sweep runs several values, as in odebench sweep tol=1e-2,1e-3"),
    **dict.fromkeys(("--resolve", "--info", "-i", "--package", "-p"), "odebench train --cfg prints all settings"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may hold letters that the terminal cannot encode
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:
        complete(parser)
    command = argv[0] if argv and not argv[0].startswith("-") else ""
    name = f"odebench {command}" if command in COMMANDS else "odebench"
    try:
        for word in argv:
            if any("\ud800" <= letter <= "\udfff" for letter in word):  # undecodable bytes
                raise UsageError(f"{word.encode(errors='backslashreplace').decode()}: is not UTF-8; name it otherwise")
        if "=" in command:
            raise UsageError(f"{command}: begin with a command, as in odebench train {command}")
        if argv and argv[0] in _HYDRA_OPTIONS:
            raise UsageError(f"{argv[0]}: {_HYDRA_OPTIONS[argv[0]]}")
        if command and command not in COMMANDS:
            raise unknown_name("command", command, COMMANDS, "commands")
        with console_log():
            arguments = _parse(parser, argv)
            code = COMMANDS[arguments.command].run(arguments) if arguments else DONE
        sys.stdout.flush()
        return code
    except Exception as error:
        return report_error(name, error)
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 130


def _open_closed_streams() -> None:
    """Open /dev/null for each stream that the shell closed (``>&-``).

    Otherwise the next file that is opened gets its descriptor, and output goes into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 (open as long as the process)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace | None:
    """Parse the command with its options and settings. Returns None after --help or --version."""
    tail: list[str] = []
    if "--" in argv:
        argv, tail = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    try:
        arguments, rest = parser.parse_known_args(argv)
    except SystemExit:
        return None
    if arguments.command == "tensorboard":
        arguments.for_tensorboard = tail
    elif tail:
        raise UsageError(f"{tail[0]}: nothing can follow --")
    for name in ("overrides", "cases", "folders", "words"):
        if name in arguments:
            # argparse reads a list only up to the first option; ``rest`` holds the later entries.
            getattr(arguments, name).extend(word for word in rest if not word.startswith("-"))
            rest = [word for word in rest if word.startswith("-")]
    if rest:
        if not rest[0].startswith("-"):
            raise UsageError(f"{rest[0]} is not expected here; leave it out")
        if hint := _HYDRA_OPTIONS.get(rest[0].partition("=")[0]):
            raise UsageError(f"{rest[0]}: {hint}")
        raise UsageError(f"unknown option {rest[0]}{_nearest(rest[0], parser, arguments)}")
    return arguments


def _nearest(word: str, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """Return a hint: the option or setting most similar to ``word``. Users often put dashes before a setting."""
    settings = []
    if "overrides" in arguments:
        from odebench.config.files import known_keys

        settings = [*(["split"] if arguments.command in ("eval", "predict") else []), *known_keys()]
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    options = {option.lstrip("-"): option for option in commands.choices[arguments.command]._option_string_actions}
    name = word.partition("=")[0].lstrip("-")
    hint = did_you_mean(name, [*options, *settings]) or nearest_setting(name, settings)
    near = hint.removeprefix("; did you mean ").removesuffix("?")
    if near in options:
        return f"; did you mean {options[near]}?"
    return f"; did you mean {near}=...? settings have no dashes" if near else ""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a description, unless the terminal is too narrow for them."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        columns = terminal_width()
        if columns is None or max(map(len, text.splitlines())) <= columns:
            return text
        lines: list[str] = []
        for is_indented, group in itertools.groupby(text.splitlines(), key=lambda line: line[:1] in ("", " ")):
            block = list(group)
            lines += _narrow_examples(block, columns) if is_indented else broken(" ".join(block), columns)
        return "\n".join(lines)


def _narrow_examples(lines: Iterable[str], columns: int) -> Iterator[str]:
    """Indented lines of a command and a remark, which gets lines of its own where both do not fit."""
    for line in lines:
        command, *remark = re.split(r"(?<=\S) {2,}", line)
        if len(line) <= columns:
            yield line
        else:
            yield from broken(command, columns)
            yield from (rest for one in remark for rest in broken(f"      {one}", columns))


class _Parser(argparse.ArgumentParser):
    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, formatter_class=_Help, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        message = message.replace("ignored explicit argument", "takes no value, but got")
        raise UsageError(f"{message} ({self.prog} --help explains)")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands. It does not parse settings KEY=VALUE: Hydra does."""
    summaries = "\n".join(f"  {name:<13} {command.SUMMARY}" for name, command in COMMANDS.items())
    parser = _Parser(prog="odebench", description=_ABOUT.format(commands=summaries))
    parser.usage = "odebench [-h] [--version] COMMAND ..."
    parser.add_argument("--version", action="version", version=f"odebench {__version__}")
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS, required=True)
    for name, command in COMMANDS.items():
        command.add_options(parsers.add_parser(name, prog=f"odebench {name}", description=command.HELP))
    return parser
