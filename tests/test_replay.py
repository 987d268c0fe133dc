"""A ring of steps against a list that remembers everything.

Step i of the synthetic stream holds i in every column, so any misplaced row shows.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from worldmodel.envs import Spaces
from worldmodel.envs.mirror import Mirror
from worldmodel.errors import UsageError
from worldmodel.replay import Replay

SPACES = Spaces({"image": (4, 4, 1), "vector": (2,)}, False, 3)
STATE = 5
STEP_BYTES = 16 + 8 + 12 + 4 + 1 + 1 + 2 * STATE
EPISODE = 7


def replay(capacity: int = 30, length: int = 4, online: int = 0, seed: int = 0) -> Replay:
    return Replay(SPACES, STATE, (capacity + 0.5) * STEP_BYTES / 1e9, length, online, seed)


def step(i: int) -> dict:
    return {
        "obs": {"image": np.full((4, 4, 1), i % 256, np.uint8), "vector": np.array([i, -i], np.float32)},
        "state": np.full(STATE, i, np.float32), "action": np.full(3, i + 0.5, np.float32), "reward": float(i),
        "is_first": i % EPISODE == 0, "is_terminal": i % EPISODE == EPISODE - 1,
    }  # fmt: skip


def fill(made: Replay, count: int) -> Replay:
    for i in range(made.total, made.total + count):
        made.add(**step(i))
    return made


def expect_steps(batch, index: np.ndarray, oldest: int) -> None:
    """Every column of the batch is that of step `index`, and the context that of the step before."""
    assert torch.equal(batch.reward.long(), torch.from_numpy(index))
    assert torch.equal(batch.obs["vector"][..., 0].long(), torch.from_numpy(index))
    assert torch.equal(batch.obs["image"][..., 0, 0, 0].long(), torch.from_numpy(index % 256))
    assert torch.equal(batch.action[..., 0], torch.from_numpy(index + 0.5).float())
    assert torch.equal(batch.is_first, torch.from_numpy(index % EPISODE == 0))
    assert torch.equal(batch.is_terminal, torch.from_numpy(index % EPISODE == EPISODE - 1))
    before = index[0] - 1
    known = index[0] > oldest
    assert torch.equal(batch.state[:, 0], torch.from_numpy(np.where(known, before, 0)).float())
    assert torch.equal(batch.before[:, 0], torch.from_numpy(np.where(known, before + 0.5, 0)).float())


# -- what came after --------------------------------------------------------------------------------------------------


def slow_after(made: Replay, last: int, most: int, known: set[int]) -> tuple[list[float], int, int, bool]:
    """Rewards, their number, the step reached, whether it is terminal: one step after the other."""
    rewards, at = [], last
    while len(rewards) < most and at + 1 < made.total and (at + 1) % EPISODE:
        at += 1
        rewards.append(float(at))
    terminal = at % EPISODE == EPISODE - 1
    recent = last >= made.total - len(made) / 4
    return (rewards, len(rewards), at, terminal) if recent and (terminal or at in known) else ([], 0, at, terminal)


@pytest.mark.parametrize("most", [1, 3, 20])
@pytest.mark.parametrize("count", [9, 30, 47, 100])
def test_what_came_after_a_recent_sequence_is_told_up_to_the_end_of_its_episode(count: int, most: int) -> None:
    made = Replay(SPACES, STATE, 30.5 * STEP_BYTES / 1e9, 4, 0, 0, after=most)
    known = set()
    for i in range(count):
        told = step(i)
        if i % 5 == 4:
            told["state"] = None
        else:
            known.add(i)
        made.add(**told)
    starts = np.arange(made.total - len(made), made.total - 3)
    batch, index = made.gather(starts)
    for b, last in enumerate(index[-1]):
        rewards, steps, at, terminal = slow_after(made, last, most, known)
        assert batch.after.rewards[:, b].tolist() == rewards + [0.0] * (most - steps)
        assert (batch.after.steps[b], batch.after.is_terminal[b]) == (steps, terminal)
        assert batch.after.state[b].tolist() == [at if at in known else 0] * STATE
    assert len(set(batch.after.steps.tolist())) > 1


def test_after_a_mirrored_sequence_comes_the_mirrored_life() -> None:
    made, starts = mirrored(after=2), np.array([18, ~18])
    assert made.gather(starts)[0].after.steps.tolist() == [2, 0]  # nobody knows yet what the mirrored 23 leads to
    made.write_back(np.array([[~23]]), torch.full((1, 1, STATE), 66.0))
    after = made.gather(starts)[0].after
    assert after.rewards.tolist() == [[22.0, 22.0], [23.0, 23.0]]
    assert after.state[:, 0].tolist() == [23.0, 66.0]


def test_nothing_is_told_of_what_came_after_unless_asked() -> None:
    assert fill(replay(), 12).sample(2)[0].after is None


# -- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [9, 30, 31, 100])
def test_batches_hold_consecutive_steps_and_the_step_before_them(count: int) -> None:
    made = fill(replay(), count)
    batch, index = made.sample(64)
    assert index.shape == (4, 64) and (np.diff(index, axis=0) == 1).all()
    oldest = max(0, count - 30)
    assert index.min() >= oldest and index.max() < count
    expect_steps(batch, index, oldest)


def test_shapes_and_types_of_a_batch() -> None:
    batch, _ = fill(replay(), 20).sample(6)
    assert batch.obs["image"].shape == (4, 6, 4, 4, 1) and batch.obs["image"].dtype == torch.uint8
    assert batch.obs["vector"].shape == (4, 6, 2) and batch.obs["vector"].dtype == torch.float32
    assert batch.action.shape == (4, 6, 3) and batch.before.shape == (6, 3) and batch.state.shape == (6, STATE)
    assert batch.reward.shape == (4, 6) and batch.state.dtype == batch.reward.dtype == torch.float32
    assert batch.is_first.dtype == batch.is_terminal.dtype == torch.bool
    assert batch.previous_action().dtype == batch.before.dtype == torch.float32


def test_previous_action_is_that_of_the_step_before() -> None:
    batch, index = fill(replay(), 30).sample(32)
    expected = torch.from_numpy(np.where(index > 0, index - 0.5, 0)).float()
    assert torch.equal(batch.previous_action()[..., 0], expected)


@pytest.mark.parametrize("count", [20, 30, 47, 60])
def test_every_remembered_step_is_sampled_and_no_other(count: int) -> None:
    """The first and the newest step too: an off-by-one at either end would never teach the terminal step."""
    made = fill(replay(), count)
    seen = np.zeros(count, int)
    starts = np.zeros(count, int)
    for _ in range(40):
        _, index = made.sample(32)
        np.add.at(seen, index, 1)
        np.add.at(starts, index[0], 1)
    oldest = max(0, count - 30)
    assert (seen[oldest:] > 0).all() and (seen[:oldest] == 0).all()
    valid = starts[oldest : count - 3]
    assert starts.sum() == valid.sum() == 1280
    expected = 1280 / len(valid)
    assert ((valid - expected) ** 2 / expected).sum() < 70  # chi-square of at most 26 degrees of freedom, p < 1e-5


def test_sequences_cross_episode_boundaries() -> None:
    batch, _ = fill(replay(), 30).sample(64)
    crossing = batch.is_first[1:].any(0)
    assert bool(crossing.any()) and bool((~crossing).any())
    t, b = [int(i[0]) for i in batch.is_first[1:].nonzero(as_tuple=True)]
    assert bool(batch.is_terminal[t, b])  # row t + 1 begins the episode after the one that row t ends


def test_the_oldest_step_has_no_context() -> None:
    for count, oldest in ((10, 0), (30, 0), (31, 1), (75, 45)):
        made = fill(replay(), count)
        batch, _ = made.gather(np.array([oldest, oldest + 1]))
        assert not batch.state[0].any() and not batch.before[0].any()
        assert batch.state[1, 0] == oldest and batch.before[1, 0] == oldest + 0.5


def test_the_same_seed_draws_the_same() -> None:
    a, b, c = (fill(replay(seed=s), 30) for s in (1, 1, 2))
    draws = [[made.sample(8)[1] for _ in range(3)] for made in (a, b, c)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


def test_a_batch_is_a_copy() -> None:
    made = fill(replay(), 20)
    batch, index = made.sample(4)
    before = batch.obs["image"].clone()
    for name in made.data:
        made.data[name][:] = 0
    assert torch.equal(batch.obs["image"], before) and torch.equal(batch.reward.long(), torch.from_numpy(index))


def test_too_few_steps_are_refused_with_the_flag_to_raise() -> None:
    made = fill(replay(), 4)
    assert not made.ready()
    with pytest.raises(UsageError, match=r"holds 4 steps.*--prefill"):
        made.sample(2)
    assert fill(made, 1).ready()
    expect_steps(*made.sample(8), oldest=0)


# -- newest first -----------------------------------------------------------------------------------------------------


def test_online_sequences_are_taught_exactly_once_and_in_order() -> None:
    made = replay(online=2)
    taught: list[int] = []
    total = 0
    for grow in (5, 3, 4, 1, 0, 9, 4):
        fill(made, grow)
        total += grow
        expected = [s for s in range(len(taught) * 4, total - 3, 4)][:2]
        batch, index = made.sample(6)
        assert index[0, : len(expected)].tolist() == expected and index.shape == (4, 6)
        expect_steps(batch, index, 0)
        taught += expected
    assert taught == [0, 4, 8, 12, 16, 20]


def test_online_sequences_that_were_forgotten_are_skipped() -> None:
    made = fill(replay(online=1), 12)
    assert made.sample(1)[1][0, 0] == 0
    fill(made, 60)  # the ring holds 42 ... 71
    assert [int(made.sample(1)[1][0, 0]) for _ in range(7)] == [42, 46, 50, 54, 58, 62, 66]
    assert made.next_online == 70


def test_a_batch_may_be_online_alone() -> None:
    made = fill(replay(online=5), 20)
    assert made.sample(2)[1][0].tolist() == [0, 4]


@pytest.mark.parametrize(("newest", "count"), [(0, 10), (4, 4), (30, 10)])
@pytest.mark.parametrize("recent", [0.0, 0.3, 1.0])
def test_the_newest_quarter_is_drawn_as_often_as_told(recent: float, newest: int, count: int) -> None:
    """Of 40 starts the last 10, or fewer; against the probabilities, which are uniform within both parts."""
    made = Replay(SPACES, STATE, 60 * STEP_BYTES / 1e9, 4, 1, 0, recent=recent, newest=newest)
    fill(made, 43)
    while made.next_online + 4 <= made.total:
        made.sample(1)
    drawn = np.bincount(np.concatenate([made.sample(50)[1][0] for _ in range(400)]), minlength=40) / 20_000
    expected = np.full(40, (1 - recent) / 40)
    expected[-count:] += recent / count
    np.testing.assert_allclose(drawn, expected, atol=5 * np.sqrt(0.25 / 20_000), rtol=0)
    assert len(drawn) == 40 and (drawn[expected > 0] > 0).all()


def test_recent_sequences_come_after_the_unseen_ones_and_where_the_ring_ends() -> None:
    made = Replay(SPACES, STATE, 30.5 * STEP_BYTES / 1e9, 4, 1, 0, recent=1.0)
    fill(made, 70)  # the ring holds 40 ... 69: 27 starts, of which 7 are recent
    drawn = [made.sample(5) for _ in range(50)]
    assert [int(index[0, 0]) for _, index in drawn[:7]] == [40, 44, 48, 52, 56, 60, 64]
    rest = {int(i) for _, index in drawn for i in index[0, 1:]}
    assert rest == set(range(60, 67))
    for batch, index in drawn:
        expect_steps(batch, index, 40)
    few = fill(Replay(SPACES, STATE, 30.5 * STEP_BYTES / 1e9, 4, 0, 0, recent=1.0), 5)  # 2 starts
    assert {int(few.sample(1)[1][0, 0]) for _ in range(20)} == {1}


# -- remembered states ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 30, 37])
def test_write_back_reaches_the_right_steps_after_the_ring_wrapped(count: int) -> None:
    made = fill(replay(), count)
    _, index = made.sample(16)
    states = torch.from_numpy(index[..., None] + 1000.0).float().expand(4, 16, STATE)
    made.write_back(index, states)
    remembered = {i: float(v) for i, v in zip(range(count - len(made), count), made.states()[:, 0], strict=True)}
    assert remembered == {i: i + 1000.0 if i in index else float(i) for i in remembered}
    start = int(index[0, 0]) + 1
    if start + 4 <= count:
        assert made.gather(np.array([start]))[0].state[0, 0] == start + 999.0


def test_write_back_of_forgotten_steps_is_skipped() -> None:
    """A batch drawn before the ring moved on must not overwrite the steps that took the place of its own."""
    made = fill(replay(), 30)
    index = np.arange(0, 4)[:, None]
    fill(made, 2)  # rows of steps 0 and 1 now hold 30 and 31
    made.write_back(index, torch.full((4, 1, STATE), 500.0))
    kept = made.states()[:, 0]  # of steps 2 ... 31
    assert kept[:2].tolist() == [500, 500] and kept[2] == 4 and kept[-2:].tolist() == [30, 31]


def test_states_are_kept_in_half_precision_and_detached() -> None:
    made = fill(replay(), 12)
    states = torch.full((4, 1, STATE), 0.1, requires_grad=True)
    made.write_back(np.arange(4)[:, None], states)
    assert made.states().dtype == np.float16
    assert made.gather(np.array([1]))[0].state[0, 0].item() == pytest.approx(0.1, rel=1e-3)


def test_a_step_without_a_state_has_zeros_even_where_the_ring_wrapped() -> None:
    made = fill(replay(), 35)
    made.add(**step(35) | {"state": None})  # where step 5 was
    fill(made, 8)
    assert not made.gather(np.array([36]))[0].state.any()
    assert made.gather(np.array([37]))[0].state.all()


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gigabytes", [1e-6, 5e-6, 0.0001])
def test_capacity_in_bytes_is_honoured(gigabytes: float) -> None:
    made = Replay(SPACES, STATE, gigabytes, 4, 0, 0)
    held = sum(column.nbytes for column in made.data.values())
    assert made.step_bytes == STEP_BYTES
    assert gigabytes * 1e9 - STEP_BYTES < held <= gigabytes * 1e9
    fill(made, made.capacity + 3)
    assert len(made) == made.capacity and sum(column.nbytes for column in made.data.values()) == held


def test_a_cap_below_two_sequences_is_refused_with_a_number_that_works() -> None:
    with pytest.raises(UsageError, match=r"--replay.gigabytes 1e-07.*at least") as error:
        Replay(SPACES, STATE, 1e-7, 4, 0, 0)
    enough = float(str(error.value).split()[-1])
    Replay(SPACES, STATE, enough * 1.01, 4, 0, 0)


def test_repr_tells_size() -> None:
    assert repr(fill(replay(), 12)).startswith("Replay(12 of 30 steps, 0.1 kB each")


# -- out and in again -------------------------------------------------------------------------------------------------


def test_rows_are_copies_of_the_steps_asked_for() -> None:
    made = fill(replay(), 37)
    rows = made.rows(28, 33)  # across the end of the ring
    assert rows["reward"].tolist() == [28, 29, 30, 31, 32]
    assert set(rows) == {"obs.image", "obs.vector", "action", "reward", "is_first", "is_terminal"}
    rows["reward"][:] = -1
    assert made.rows(28, 29)["reward"] == 28
    assert made.rows(30, 32, ["state"])["state"][:, 0, 0].tolist() == [30, 31]


@pytest.mark.parametrize("count", [20, 30, 75])
def test_restore_brings_everything_back(count: int) -> None:
    made = fill(replay(), count)
    oldest = count - len(made)
    again = replay()
    cuts = [oldest, oldest + 5, oldest + 6, count]
    for start, stop in itertools.pairwise(cuts):
        again.restore(start, made.rows(start, stop))
    again.restore_states(made.states())
    again.next_online = made.next_online
    assert (len(again), again.total) == (len(made), made.total)
    assert np.array_equal(again.states(), made.states())
    for _ in range(3):
        (a, i), (b, j) = made.sample(16), again.sample(16)
        assert np.array_equal(i, j) and torch.equal(a.state, b.state) and torch.equal(a.before, b.before)
        expect_steps(b, j, oldest)
    fill(made, 9), fill(again, 9)
    (a, i), (b, j) = made.sample(16), again.sample(16)
    assert np.array_equal(i, j) and torch.equal(a.obs["image"], b.obs["image"]) and torch.equal(a.state, b.state)


def test_restored_steps_must_follow_each_other() -> None:
    made, again = fill(replay(), 20), replay()
    again.restore(3, made.rows(3, 6))
    with pytest.raises(UsageError, match="begin at 8, but 6"):
        again.restore(8, made.rows(8, 10))
    again.restore(6, made.rows(6, 20))
    again.restore_states(made.states())
    assert len(again) == 17 and again.total == 20
    expect_steps(*again.sample(32), oldest=3)


def test_restored_states_must_be_enough_and_the_newest_count() -> None:
    """A damaged episode costs the steps up to its end, while the states of all steps were saved."""
    made, again = fill(replay(), 20), replay()
    again.restore(8, made.rows(8, 20))
    with pytest.raises(UsageError, match="11 remembered states for 12 steps"):
        again.restore_states(made.states()[:11])
    again.restore_states(made.states())
    assert again.states()[:, 0].tolist() == list(range(8, 20))


def test_states_restored_into_an_empty_ring_are_dropped() -> None:
    again = replay()
    again.restore_states(fill(replay(), 20).states())
    assert len(again) == 0


def test_clear_forgets_and_begins_again() -> None:
    made = fill(replay(online=1), 40)
    made.sample(2)
    made.clear()
    assert len(made) == 0 and not made.ready()
    fill(made, 9)
    batch, index = made.sample(8)
    assert index[0, 0] == 0
    expect_steps(batch, index, 0)


def test_discrete_actions_are_stored_as_one_hot() -> None:
    made = Replay(Spaces({"vector": (2,)}, True, 4), STATE, 1e-5, 3, 0, 0)
    for i in range(8):
        values = {"reward": 0.0, "is_first": False, "is_terminal": False}
        made.add({"vector": np.zeros(2)}, action=np.eye(4, dtype=np.float32)[i % 4], **values)
    batch, index = made.sample(4)
    assert torch.equal(batch.action.argmax(-1), torch.from_numpy(index % 4))


# -- in the mirror ----------------------------------------------------------------------------------------------------


def mirrored(capacity: int = 30, length: int = 4, online: int = 0, after: int = 0) -> Replay:
    """Steers with the first of two actions; the picture is brighter from left to right."""
    spaces = Spaces({"image": (4, 4, 1), "vector": (2,)}, False, 2)
    made = Replay(spaces, STATE, (capacity + 0.5) * 58 / 1e9, length, online, 0, Mirror.of(spaces), after=after)
    assert made.capacity == capacity
    for i in range(25):
        values = step(i) | {"action": np.array([i / 100, 0.5], np.float32)}
        values["obs"]["image"] = np.tile(np.arange(4, dtype=np.uint8) + i, (4, 1))[..., None]
        made.add(**values)
    return made


def test_a_mirrored_sequence_is_the_other_way_round_and_nothing_else_is_touched() -> None:
    made = mirrored()
    batch, index = made.gather(np.array([9, ~9]))
    assert index.tolist() == [[i, ~i] for i in (9, 10, 11, 12)]
    assert torch.equal(batch.obs["image"][:, 1], batch.obs["image"][:, 0].flip(-2))
    assert not torch.equal(batch.obs["image"][:, 1], batch.obs["image"][:, 0])
    turned = torch.tensor([-1.0, 1.0])
    assert torch.equal(batch.action[:, 1], batch.action[:, 0] * turned) and batch.action[:, 0].all()
    assert torch.equal(batch.before[1], batch.before[0] * turned) and batch.before[0].all()
    for same in (batch.obs["vector"], batch.reward, batch.is_first, batch.is_terminal):
        assert torch.equal(same[:, 1], same[:, 0])
    for _ in range(2):  # what is remembered has not been turned round
        assert torch.equal(made.gather(np.array([9]))[0].obs["image"][:, 0], batch.obs["image"][:, 0])


def test_each_life_has_states_of_its_own() -> None:
    made = mirrored()
    batch, index = made.gather(np.array([9, ~9]))
    assert (batch.state[0] == 8).all() and not batch.state[1].any(), "the mirrored life has not been filtered yet"
    states = torch.zeros(4, 2, STATE)
    states[:, 0], states[:, 1] = 100.0, 200.0
    made.write_back(index, states)
    after, _ = made.gather(np.array([10, ~10, 9, ~9]))
    assert after.state[:, 0].tolist() == [100, 200, 8, 0]
    again = mirrored()
    again.restore_states(made.states())
    assert made.states().shape == (25, 2 * STATE) and np.array_equal(again.states(), made.states())
    assert again.gather(np.array([~10]))[0].state[0, 0] == 200


def test_bug_a_run_stopped_before_its_first_step_could_not_save_its_states() -> None:
    made = replay()
    assert made.states().shape == (0, STATE) and made.states().dtype == np.float16
    made.restore_states(made.states())


def test_half_of_the_sequences_are_mirrored_but_the_newest_steps_come_as_they_were() -> None:
    made = mirrored(online=1)
    drawn = [made.sample(5)[1] for _ in range(200)]
    assert (drawn[0][:, 0] >= 0).all() and drawn[0][0, 0] == 0
    share = np.mean([index < 0 for index in drawn])
    assert 0.42 < share < 0.58
    seen = {int(~i) for index in drawn for i in index[index < 0]}
    assert seen == set(range(25))


def test_the_first_mirrored_sequence_has_no_context_and_forgotten_steps_are_skipped() -> None:
    made = mirrored(capacity=20)  # steps 0 ... 4 are gone
    batch, _ = made.gather(np.array([~5]))
    assert not batch.state.any() and not batch.before.any()
    made.write_back(np.array([[~4], [~5]]), torch.full((2, 1, STATE), 7.0))
    assert made.gather(np.array([~6]))[0].state[0, 0] == 7
    assert (made.states()[:, STATE:] == 7).sum() == STATE
