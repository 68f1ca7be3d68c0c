"""``python -m odebench``: the same as the ``odebench`` command."""

import os
import sys

from odebench.cli import main

if __name__ == "__main__":
    code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # One of several processes (torchrun). A thread of the process group may still hold a tensor, and a thread that
        # asks for the interpreter while it ends aborts a process whose work is done and saved. So it does not end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
