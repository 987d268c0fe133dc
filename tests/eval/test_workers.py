"""Workers that fail, die, hang or leave are named, and never hang the parent."""

from __future__ import annotations

import multiprocessing as mp
import time

import pytest
from worker_jobs import behave, run_out

from worldmodel.errors import NumericalError, WorldModelError
from worldmodel.eval.workers import stream


@pytest.fixture(autouse=True)
def nobody_is_left():
    yield
    assert not mp.active_children()


def test_all_messages_arrive():
    assert sorted(message.seed for message in stream(behave, [[1, 2, 3], [4], [5, 6]]) if message) == [1, 2, 3, 4, 5, 6]


def test_an_exception_surfaces_with_its_traceback_and_the_seeds():
    got = []
    with pytest.raises(WorldModelError, match=r"ValueError: the axle broke; its unfinished seeds: \[13, 2\]") as caught:
        for message in stream(behave, [[1, 13, 2]]):
            got += [message.seed] if message else []
    assert got == [1]
    assert 'raise ValueError("the axle broke")' in str(caught.value.__cause__)


def test_our_own_errors_keep_their_kind():
    with pytest.raises(NumericalError, match="not finite"):
        list(stream(run_out, [[1]]))


@pytest.mark.parametrize(("seed", "words"), [(14, r"died \(exit code -9\)"), (15, r"died \(exit code 0\)")])
def test_a_dead_worker_does_not_hang_the_parent(seed, words):
    began = time.monotonic()
    with pytest.raises(WorldModelError, match=words + rf"; its unfinished seeds: \[{seed}\]"):
        list(stream(behave, [[16], [1, seed]]))  # the other would sleep for ten minutes
    assert time.monotonic() - began < 30


def test_a_dead_worker_is_noticed_while_its_child_holds_the_pipe():
    began = time.monotonic()
    with pytest.raises(WorldModelError, match=r"died \(exit code 3\)"):
        list(stream(behave, [[19]]))
    assert time.monotonic() - began < 7


def test_a_silent_worker_is_given_up():
    with pytest.raises(WorldModelError, match=r"said nothing for 3 seconds; its unfinished seeds: \[16, 2\]"):
        list(stream(behave, [[1, 16, 2]], patience=3))


def test_a_slow_worker_is_waited_for():
    assert [m.seed for m in stream(behave, [[18]], patience=3) if m] == [18]


def test_a_worker_that_leaves_seeds_undone_is_named():
    with pytest.raises(WorldModelError, match=r"stopped early; its unfinished seeds: \[17, 2\]"):
        list(stream(behave, [[1, 17, 2]]))


def test_whoever_listens_hears_something_every_second():
    """So that it can stop while all workers are silent."""
    began = time.monotonic()
    news = stream(behave, [[16]])
    assert [next(news), next(news)] == [None, None] and time.monotonic() - began < 5
    news.close()


def test_an_abandoned_stream_stops_its_workers():
    news = stream(behave, [[1, 16]])
    assert next(message for message in news if message).seed == 1
    news.close()
    assert not mp.active_children()
