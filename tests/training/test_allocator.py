import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from odebench.training.environment import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(2**20) for _ in range(64)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
@pytest.mark.slow
def test_freed_memory_is_reused_without_the_kernel():
    def faults(how):
        return int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True).stdout)

    assert faults("kept") < 50 < faults("given back")  # hundreds even where pages are huge
