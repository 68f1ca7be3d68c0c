"""How this process allocates memory on the CPU."""

import ctypes
import platform


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step, in place of returning them to the system.

    A step allocates and frees the same large tensors again and again; by default each is a new mapping whose
    pages the kernel zeroes anew, which can cost as much as the arithmetic.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)
