"""``python -m odebench``: the same as the ``odebench`` command."""

import os
import sys

from odebench.cli import main

if __name__ == "__main__":
    code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # One of several processes (torchrun). A thread of the process group that still holds a tensor would abort the
        # process while the interpreter shuts down, though all work is done and saved. So skip the shutdown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
