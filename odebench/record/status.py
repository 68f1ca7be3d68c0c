"""Write status.json, the state of a run or of a job that has not started. Imports no torch."""

import errno
from pathlib import Path
from typing import Any

from odebench.record import layout
from odebench.record.files import overwrite_json, utc_now, write_json


def write_status(folder: Path, name: str, step: int = 0, **fields: Any) -> None:
    """Write status.json atomically: the status (one of `layout.STATUSES`), the step, the time (UTC) and `fields`.

    fields: other entries, such as message and traceback. If the disk is full, the old file is overwritten in place,
    without the traceback.
    """
    assert name in layout.STATUSES, name
    content = {"status": name, "step": step, "time": utc_now(), **fields}
    try:
        write_json(folder / layout.STATUS, content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        content.pop("traceback", None)
        overwrite_json(folder / layout.STATUS, content)
