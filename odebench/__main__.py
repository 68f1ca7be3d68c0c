"""``python -m odebench``: the same as the ``odebench`` command."""

import sys

from odebench.cli import main

if __name__ == "__main__":
    sys.exit(main())
