"""Freed memory is used again: no page faults for a block as large as one before it."""

import platform
import subprocess
import sys

import pytest

from worldmodel.train.allocator import keep_memory

FAULTS = """
import resource
from worldmodel.train.allocator import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(16 << 20) for _ in range(6)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

{first}
faults()  # the heap grows
print(sum(faults() for _ in range(5)))
"""


def faults(first: str) -> int:
    """Page faults of 30 blocks of 4096 pages in a process of their own, for what is set stays set."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(first=first)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the options are glibc's")
def test_a_freed_block_leaves_its_pages_to_the_next():
    assert faults("assert keep_memory()") < 4096 < faults("")


def test_where_there_is_no_such_option_nothing_happens(monkeypatch):
    monkeypatch.setattr("worldmodel.train.allocator.ctypes.CDLL", lambda name: object())
    assert not keep_memory()
