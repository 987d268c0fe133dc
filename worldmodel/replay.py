"""What really happened: a ring of steps in uint8, replayed as sequences that may cross episode boundaries.

Every step has a global index, counted from the first step of the run. The ring holds the last `capacity` of them.
Where a task has a mirror, half of the sequences are replayed mirrored: as a second life, with remembered states of its
own. Their steps are addressed by `~index`, which is negative.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.envs.mirror import Mirror
from worldmodel.envs.spaces import Spaces
from worldmodel.errors import UsageError
from worldmodel.models.base import After, Batch

NEWEST = 1 / 4
"""The share of what is remembered that counts as recent."""


class Replay:
    """A ring of steps.

    Args:
        spaces: what a step holds.
        state_size: S; the latest known posterior state of every step is remembered in float16 and gives sequences
            their context, instead of a cold start in mid-episode (DreamerV3's stored latents).
        gigabytes: cap of the memory in 10^9 bytes. length: steps T of a sequence.
        online: sequences of every batch reserved for steps that were never taught (DreamerV3's online queue).
        mirror: what makes a step its mirror image, if anything does.
        recent: share of the other sequences that begin in the newest quarter of what is remembered. Drawn uniformly,
            the first steps of a run that lives on are replayed many times, the newest, which show what the policy does
            now, hardly at all (Robine et al. 2023, arXiv 2303.07109; Wang and Ross 2019, arXiv 1906.04009).
        newest: most steps in which these may begin, where a quarter is more; 0: no limit.
        after: steps K after a sequence, in its last step's episode, whose rewards are told with it; 0: none.

    Raises UsageError when the cap holds fewer than two sequences.
    """

    def __init__(
        self, spaces: Spaces, state_size: int, gigabytes: float, length: int, online: int, seed: int,
        mirror: Mirror | None = None, recent: float = 0.0, after: int = 0, newest: int = 0,
    ):  # fmt: skip
        self.spaces, self.state_size, self.length, self.online = spaces, state_size, length, online
        self.mirror, self.lives, self.recent = mirror, 2 if mirror else 1, recent
        self.after, self.newest = after, newest
        layout: dict[str, tuple[tuple[int, ...], Any]] = {
            f"obs.{name}": (shape, np.uint8 if len(shape) == 3 else np.float32)
            for name, shape in spaces.observations.items()
        }
        layout |= {
            "action": ((spaces.actions,), np.float32),
            "reward": ((), np.float32),
            "is_first": ((), np.bool_),
            "is_terminal": ((), np.bool_),
        }
        rows = layout | {"state": ((self.lives, state_size), np.float16)}
        self.step_bytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in rows.values())
        self.capacity = int(gigabytes * 1e9 / self.step_bytes)
        if self.capacity < 2 * length:
            need = 2 * length * self.step_bytes / 1e9
            raise UsageError(f"--replay.gigabytes {gigabytes} holds {self.capacity} steps: give at least {need:.3g}")
        self.columns = list(layout)
        # Zero pages cost nothing until they are written, so the whole ring can be laid out at once.
        self.data = {name: np.zeros((self.capacity, *shape), dtype) for name, (shape, dtype) in rows.items()}
        self.first = 0  # nothing before this global index was ever here
        self.total = 0
        self.next_online = 0
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return min(self.total - self.first, self.capacity)

    def add(self, obs: dict[str, np.ndarray], state: np.ndarray | None = None, **values: Any) -> None:
        """Appends one step: `values` are action (A,), reward, is_first, is_terminal; no `state` (S,) means zeros."""
        row = self.total % self.capacity
        for name, value in obs.items():
            self.data[f"obs.{name}"][row] = value
        for name in ("action", "reward", "is_first", "is_terminal"):
            self.data[name][row] = values[name]
        self.data["state"][row] = 0
        if state is not None:
            self.data["state"][row, 0] = state
        self.total += 1

    def ready(self) -> bool:
        """Whether a sequence can be drawn."""
        return len(self) >= self.length + 1

    def sample(self, batch: int, device: torch.device | str = "cpu") -> tuple[Batch, np.ndarray]:
        """(`batch` sequences, global index (T, B) of their steps). Raises UsageError when there are too few steps."""
        if not self.ready():
            raise UsageError(f"replay holds {len(self)} steps, a sequence needs {self.length + 1}: raise --prefill")
        starts = self._online_starts(min(self.online, batch))
        oldest = self.total - len(self)
        end = self.total - self.length + 1
        drawn = self.rng.integers(oldest, end, batch - len(starts))
        if self.recent:
            count = math.ceil(NEWEST * (end - oldest))
            newest = self.rng.integers(end - min(count, self.newest or count), end, len(drawn))
            drawn = np.where(self.rng.random(len(drawn)) < self.recent, newest, drawn)
        if self.mirror:
            drawn = np.where(self.rng.random(len(drawn)) < 0.5, ~drawn, drawn)
        return self.gather(np.concatenate([np.array(starts, np.int64), drawn]), device)

    def gather(self, starts: np.ndarray, device: torch.device | str = "cpu") -> tuple[Batch, np.ndarray]:
        """The sequences that begin at the global indices `starts` (B,), as `sample` returns them; at ~index those that
        begin at index, mirrored."""
        life = (starts < 0).astype(np.int64)
        starts = np.where(life, ~starts, starts)
        index = np.arange(self.length)[:, None] + starts[None]  # (T, B)
        rows = index % self.capacity
        columns = {name: self.data[name][rows] for name in self.columns}
        # The step before: its state and action are the context; the oldest step of all has none.
        known = (starts > self.total - len(self))[:, None]
        row = (starts - 1) % self.capacity
        before = np.where(known, self.data["action"][row], 0)
        state = np.where(known, self.data["state"][row, life], 0).astype(np.float32)
        if life.any():
            chosen = np.flatnonzero(life)
            for name in self.spaces.observations:
                column = columns[f"obs.{name}"]
                column[:, chosen] = self.mirror.observation(name, column[:, chosen])
            for actions in (columns["action"].swapaxes(0, 1), before):
                actions[chosen] = self.mirror.action(actions[chosen])

        def sent(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        return Batch(
            obs={name: sent(columns[f"obs.{name}"]) for name in self.spaces.observations},
            action=sent(columns["action"]),
            reward=sent(columns["reward"]),
            is_first=sent(columns["is_first"]),
            is_terminal=sent(columns["is_terminal"]),
            state=sent(state),
            before=sent(before),
            after=After(*map(sent, self._after(index[-1], life))) if self.after else None,
        ), np.where(life, ~index, index)

    def _after(self, last: np.ndarray, life: np.ndarray) -> tuple[np.ndarray, ...]:
        """The fields of `After` for sequences that end at the global indices `last` (B,). None are told of what came
        where the state of the last step is not known yet, for nobody could say what follows it, nor of sequences that
        are not recent, for it was another policy that drove there."""
        index = last + np.arange(1, self.after + 1)[:, None]  # (K, B)
        rows = index % self.capacity
        same = np.logical_and.accumulate((index < self.total) & ~self.data["is_first"][rows], 0)
        steps = same.sum(0)
        row = (last + steps) % self.capacity
        terminal, state = self.data["is_terminal"][row], self.data["state"][row, life]
        steps[~terminal & ~state.any(-1)] = 0
        steps[last < self.total - NEWEST * len(self)] = 0
        rewards = np.where(np.arange(self.after)[:, None] < steps, self.data["reward"][rows], 0)
        return rewards, steps, state.astype(np.float32), terminal

    def write_back(self, index: np.ndarray, states: Tensor) -> None:
        """Remembers newer states (T, B, S) of the steps with global `index` (T, B), as `sample` returns it; forgotten
        steps are skipped."""
        life = (index < 0).astype(np.int64)
        steps = np.where(life, ~index, index)
        alive = steps >= self.total - len(self)
        newer = states.detach().cpu().numpy()[alive].astype(np.float16)
        self.data["state"][steps[alive] % self.capacity, life[alive]] = newer

    def _online_starts(self, most: int) -> list[int]:
        """Starts of up to `most` consecutive sequences that were never taught, oldest first, each handed out once."""
        self.next_online = max(self.next_online, self.total - len(self))
        starts: list[int] = []
        while len(starts) < most and self.next_online + self.length <= self.total:
            starts.append(self.next_online)
            self.next_online += self.length
        return starts

    def rows(self, start: int, stop: int, columns: list[str] | None = None) -> dict[str, np.ndarray]:
        """A copy of the steps with global index in [start, stop); all columns but `state` unless named."""
        index = np.arange(start, stop) % self.capacity
        return {name: self.data[name][index] for name in columns or self.columns}

    def clear(self) -> None:
        """Forgets every step."""
        self.first = self.total = self.next_online = 0

    def restore(self, start: int, rows: dict[str, np.ndarray]) -> None:
        """Puts steps back at the global index `start`, which must follow what is there, or begin an empty ring."""
        count = len(rows["reward"])
        if not len(self):
            self.first = start
        elif start != self.total:
            raise UsageError(f"replay steps begin at {start}, but {self.total} was expected next")
        index = np.arange(start, start + count) % self.capacity
        for name, values in rows.items():
            self.data[name][index] = values
        self.total = start + count

    def states(self) -> np.ndarray:
        """(len, S) float16: the remembered states, oldest first; (len, 2 S) with those of the mirrored life."""
        return self.rows(self.total - len(self), self.total, ["state"])["state"].reshape(
            len(self), self.lives * self.state_size
        )

    def restore_states(self, states: np.ndarray) -> None:
        """The inverse of `states`, once the steps are back; of more states than steps, the newest count."""
        if len(states) < len(self):
            raise UsageError(f"{len(states)} remembered states for {len(self)} steps")
        newest = states[len(states) - len(self) :].reshape(-1, self.lives, self.state_size)
        self.data["state"][np.arange(self.total - len(self), self.total) % self.capacity] = newest

    def __repr__(self) -> str:
        most = self.capacity * self.step_bytes / 1e9
        size = f"{self.step_bytes / 1e3:.1f} kB each, at most {most:.1f} GB"
        return f"Replay({len(self):,} of {self.capacity:,} steps, {size})"
