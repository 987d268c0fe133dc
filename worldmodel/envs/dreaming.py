"""Many dreams side by side: what `DreamEnv` (one) and `DreamVectorEnv` (many) are made of.

A world model computes all rows of a batch at once. The last bits of a matrix product depend on the number of its rows,
and one other bit can turn a sampled latent. Batches therefore always have the same size, `rows`: a dream is filled up
with idle rows, many dreams are computed `rows` at a time. With noise of its own for every row, a dream then comes out
the same, bit for bit, whoever is dreamed beside it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Space
from torch import Tensor

from worldmodel.envs.dream_actions import agent_actions, task_actions
from worldmodel.envs.dream_subject import DreamOptions, Subject
from worldmodel.errors import NumericalError, UsageError
from worldmodel.randomness import RowNoise, generator

UNBOUNDED = 1e6
"""Bound of the features of a world that promises none; what lies beyond is clipped."""


class Row(NamedTuple):
    """What one dream gave in one step."""

    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Dreams:
    """`count` dreams, begun and stepped row by row. Draws nothing from the global generators.

    Args:
        subject: see there. options: see there. render: whether pictures are asked for that are not observed.

    Raises UsageError for what this world cannot do: pictures, a temperature, a disagreement.
    """

    def __init__(self, subject: Subject, options: DreamOptions, count: int, render: bool = False) -> None:
        self.subject, self.options, self.count = subject, options, count
        self.world = subject.world
        tempered = options.temperature != 1
        self.dreamed = self.world.tempered(options.temperature) if tempered else self.world
        if options.penalty and not hasattr(self.world, "disagreement"):
            raise UsageError(f"penalty={options.penalty} needs a world that offers `disagreement(state, action)`: "
                             f"{type(self.world).__name__} does not; leave the penalty at 0")  # fmt: skip
        padded = -(-count // options.rows) * options.rows
        size, device = subject.starts.states.shape[1], self.world.initial(1).device
        self.states = torch.zeros(padded, size, device=device)
        self.states[:] = subject.starts.states[0].to(device).float()  # idle rows dream too, of nobody's concern
        self.generators = [generator(row) for row in range(padded)]
        self.start, self.steps = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.over = np.ones(count, bool)
        self.bound = self.world.feature_bound or UNBOUNDED
        self._lay_out(render)

    @torch.no_grad()
    def _lay_out(self, render: bool) -> None:
        with self._apart(0):
            picture = self.world.decode(self.states[:1])
            features = self.world.features(self.states[:1])
        self.draws = picture is not None
        if not self.draws and (self.options.obs != "latent" or render):
            raise UsageError(f"{type(self.world).__name__} was not trained on images and cannot draw its dreams: "
                             "use obs='latent' and no render_mode")  # fmt: skip
        spaces: dict[str, Space] = {}
        if picture is not None:
            channels, height, width = picture.shape[1:]
            spaces["pixels"] = Box(0, 255, (height, width, channels), np.uint8)
        spaces["latent"] = Box(-self.bound, self.bound, (features.shape[-1],), np.float32)
        self.lone = None if self.options.obs == "both" else self.options.obs
        self.observation_space = Dict(spaces) if self.lone is None else spaces[self.lone]
        spaces_of, agent = self.subject.spaces, self.subject.agent
        self.action_space, self.convert = agent_actions(spaces_of)
        if self.options.actions == "task":
            if agent is None:
                raise UsageError("actions='task' needs the agent, which knows its task; a world alone does not")
            with agent.make_env() as env:
                self.action_space, self.convert = task_actions(env, spaces_of)

    def begin(self, row: int, random: np.random.Generator, options: dict[str, Any] | None) -> dict[str, Any]:
        """Begins dream `row`: its start and the seed of its noise are drawn from `random`. Returns its info."""
        chosen, seed = int(random.integers(len(self.subject.starts))), int(random.integers(2**63))
        for name in options or {}:
            if name != "start":
                raise UsageError(f"reset knows the option 'start', not {name!r}")
        if options and options.get("start") is not None:
            chosen = self._index(options["start"])
        self.states[row] = self.subject.starts.states[chosen].to(self.states.device).float()
        self.generators[row] = generator(seed)
        self.start[row], self.steps[row], self.over[row] = chosen, 0, False
        return self._info(row, 0.0, 1.0, None)

    def _index(self, start: Any) -> int:
        count = len(self.subject.starts)
        if isinstance(start, bool) or not isinstance(start, (int, np.integer)) or not 0 <= start < count:
            raise UsageError(f"start must be an integer from 0 to {count - 1}, got {start!r}")
        return int(start)

    def step(self, actions: dict[int, Any]) -> dict[int, Row]:
        """One step of every dream in `actions`, row -> action of the environment.

        Raises UsageError for an action outside of its space or a dream that is over, NumericalError when the world
        gives what is no number.
        """
        if over := [row for row in actions if self.over[row]]:
            raise UsageError(f"dream {over[0]} has not begun or is over: call reset first")
        taken = np.zeros((len(self.states), self.subject.spaces.actions), np.float32)
        for row, action in actions.items():
            taken[row] = self.convert(action)
        moves = torch.from_numpy(taken).to(self.states.device)
        told: dict[int, Row] = {}
        for part in self._parts(actions):
            reward, cont, disagreement = self._imagine(part, moves[part])
            for row in actions:
                if part.start <= row < part.stop:
                    i = row - part.start
                    told[row] = self._judge(row, reward[i], cont[i], disagreement and disagreement[i])
        return told

    @torch.no_grad()
    def _imagine(self, part: slice, moves: Tensor) -> tuple[list[float], list[float], list[float] | None]:
        with self._apart(part.start), RowNoise(self.generators[part]):
            disagreement = self.world.disagreement(self.states[part], moves).tolist() if self.options.penalty else None
            step = self.dreamed.imagine(self.states[part], moves)
        self.states[part] = step.state
        return step.reward.tolist(), step.cont.tolist(), disagreement

    def _judge(self, row: int, raw: float, cont: float, disagreement: float | None) -> Row:
        self.steps[row] += 1
        reward = raw - self.options.penalty * disagreement if disagreement is not None else raw
        if not (math.isfinite(reward) and math.isfinite(cont)):
            raise NumericalError(f"the dream from start {self.start[row]} paid {reward} at imagined step "
                                 f"{self.steps[row]} (continue {cont}): the world gives what is no number")  # fmt: skip
        chance = float(torch.rand((), generator=self.generators[row]))  # drawn in any case: `cont` changes nothing else
        terminated = {"sample": chance >= cont, "threshold": cont < 0.5, "ignore": False}[self.options.cont]
        truncated = bool(self.steps[row] >= self.options.horizon)
        self.over[row] = terminated or truncated
        return Row(reward, terminated, truncated, self._info(row, raw, cont, disagreement))

    def _info(self, row: int, raw: float, cont: float, disagreement: float | None) -> dict[str, Any]:
        start, starts = int(self.start[row]), self.subject.starts
        info = {
            "cont_prob": cont, "raw_reward": raw, "start": start, "start_episode": int(starts.episode[start]),
            "start_step": int(starts.step[start]), "imagined_steps": int(self.steps[row]),
            "temperature": float(self.options.temperature),
        }  # fmt: skip
        if self.options.penalty:
            info["disagreement"] = disagreement or 0.0
        return info

    def observe(self, rows: Iterable[int]) -> dict[int, Any]:
        """Observations of `rows`, fresh arrays every time."""
        rows = list(rows)
        seen: dict[int, dict[str, np.ndarray]] = {row: {} for row in rows}
        if self.options.obs != "latent":
            for row, picture in self.pictures(rows).items():
                seen[row]["pixels"] = picture
        if self.options.obs != "pixels":
            for row, features in self._rows(rows, self._latent):
                seen[row]["latent"] = features
        return {row: seen[row][self.lone] if self.lone else seen[row] for row in rows}

    def pictures(self, rows: Iterable[int]) -> dict[int, np.ndarray]:
        """(H, W, C) uint8 of `rows`."""
        return dict(self._rows(list(rows), self._picture))

    @torch.no_grad()
    def _rows(self, rows: list[int], look: Any) -> Iterator[tuple[int, np.ndarray]]:
        for part in self._parts(rows):
            with self._apart(part.start):
                seen = look(self.states[part])
            for row in rows:
                if part.start <= row < part.stop:
                    yield row, seen[row - part.start].copy()  # a view would keep the whole batch alive

    def _latent(self, states: Tensor) -> np.ndarray:
        features = self.world.features(states).float()
        if not bool(features.isfinite().all()):
            raise NumericalError("the features of a dreamed state are not finite")
        return features.clamp(-self.bound, self.bound).cpu().numpy()

    def _picture(self, states: Tensor) -> np.ndarray:
        picture = self.world.decode(states).float().clamp(0, 1).mul(255).add(0.5).to(torch.uint8)
        return picture.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _parts(self, rows: Iterable[int]) -> list[slice]:
        """The batches in which `rows` lie."""
        size = self.options.rows
        return [slice(first * size, (first + 1) * size) for first in sorted({row // size for row in rows})]

    @contextlib.contextmanager
    def _apart(self, row: int) -> Iterator[None]:
        """What is drawn outside of `RowNoise` (by a world that draws other shapes) comes from a stream of its own,
        not from the global one."""
        device = self.states.device
        cuda = [device.index or 0] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            seed = (self.generators[row].initial_seed() + int(self.steps[row])) % 2**63
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed(seed)
            yield
