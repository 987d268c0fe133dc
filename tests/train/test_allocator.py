"""Freed memory is used again: no page faults for a block as large as one before it."""

import platform
import resource

import pytest

from worldmodel.train.allocator import keep_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the options are glibc's")
def test_a_freed_block_leaves_its_pages_to_the_next():
    assert keep_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        _ = [bytearray(16 << 20) for _ in range(6)]
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()  # the heap grows
    assert sum(faults() for _ in range(10)) < 4096  # pages of 4 KiB: as many as one of the 60 blocks has


def test_where_there_is_no_such_option_nothing_happens(monkeypatch):
    monkeypatch.setattr("worldmodel.train.allocator.ctypes.CDLL", lambda name: object())
    assert not keep_memory()
