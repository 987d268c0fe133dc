"""Freed memory stays with the process, for the next tensor: on CPU, zeroing pages is a part of an update."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Options of glibc's `mallopt` (mallopt(3))."""


def keep_memory() -> bool:
    """Asks glibc to serve blocks of up to 32 MiB, the most it allows, from a heap that never shrinks.

    By default a block of that size is mapped anew for every tensor, and each of its pages costs a fault: some 24,000 in
    an update of `carracing`. False where there is no glibc: nothing has changed then.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # another C library, another system
        return False
    wanted = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}
    return all([mallopt(option, value) for option, value in wanted.items()])
