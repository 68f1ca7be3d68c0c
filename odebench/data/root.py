"""The folder of data sets that are read from files."""

import os
from pathlib import Path

from odebench.errors import UsageError


def data_root(root: str | None) -> Path:
    """The folder of the data sets: the setting, else $ODEBENCH_DATA, else ~/.cache/odebench.

    Raises UsageError if the user named a folder that does not exist, rather than download to a misspelt path.
    """
    if root is not None:
        named, path = "data.root", Path(root).expanduser()
    elif os.environ.get("ODEBENCH_DATA"):
        named, path = "$ODEBENCH_DATA", Path(os.environ["ODEBENCH_DATA"]).expanduser()
    else:
        return Path.home() / ".cache" / "odebench"
    if not os.path.isdir(path):
        raise UsageError(f"{named}={path} is not a folder; create it to download data there", "data.root")
    return path
