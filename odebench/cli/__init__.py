# PYTHON_ARGCOMPLETE_OK
"""The command line: one module per command, with its options, its help and its call.

torch and Hydra are imported only where a command needs them. Results go to stdout, progress and log to stderr. Exit
codes: 0 done, 1 failed or nothing found (a folder without runs), 2 wrong usage or settings, 3 diverged, 75 stopped by a
signal with a checkpoint, 130 stopped by Ctrl-C before there was one.
"""

from odebench.cli.command import main

__all__ = ["main"]
