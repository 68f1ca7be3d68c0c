"""Where the data sets that are read from files lie."""

import os
from pathlib import Path

from odebench.errors import UsageError


def data_root(root: str | None) -> Path:
    """Where data sets lie: the setting, else $ODEBENCH_DATA, else ~/.cache/odebench.

    Raises UsageError where the user named a folder that does not exist: a slip of the pen is no reason to
    make a folder and download into it.
    """
    if root is not None:
        named, path = "data.root", Path(root).expanduser()
    elif os.environ.get("ODEBENCH_DATA"):
        named, path = "$ODEBENCH_DATA", Path(os.environ["ODEBENCH_DATA"]).expanduser()
    else:
        return Path.home() / ".cache" / "odebench"
    if not os.path.isdir(path):
        raise UsageError(f"{named}={path} is no folder; make it if data are to be downloaded there", "data.root")
    return path
