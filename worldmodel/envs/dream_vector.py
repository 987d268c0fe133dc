"""Many dreams in one batched environment: `gymnasium.make_vec("worldmodel/Dream-v0", num_envs=64, checkpoint=...)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from worldmodel.envs.dream import DreamEnv, checked_mode, coloured
from worldmodel.envs.dream_subject import DreamOptions, subject_of
from worldmodel.envs.dreaming import Dreams, Row
from worldmodel.envs.spaces import Spaces
from worldmodel.envs.starts import Starts
from worldmodel.errors import UsageError

Seeds = int | Sequence[int | None] | None


class DreamVectorEnv(VectorEnv):
    """`num_envs` dreams, each what a `DreamEnv` with its seed and the same options gives, in one forward pass for
    every `rows` of them. Behaves as `SyncVectorEnv([DreamEnv, ...])`, tuple by tuple.

    Args:
        num_envs: number of dreams. autoreset_mode: what happens when a dream ends:
            NEXT_STEP: the next step begins a new one, ignores its action and pays 0.
            SAME_STEP: a new one begins at once; `infos["final_obs"]` and `infos["final_info"]` tell of the old one.
            DISABLED: `reset(options={"reset_mask": bool array})` is the caller's duty.
        others: as for `DreamEnv`.

    `reset(options={"start": i})` begins all dreams at start i, a sequence gives each its own.
    """

    metadata = {**DreamEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, checkpoint: Any, num_envs: int = 1, *, autoreset_mode: str | AutoresetMode = "NextStep",
                 spaces: Spaces | None = None, starts: Starts | None = None, render_mode: str | None = None,
                 **options: Any) -> None:  # fmt: skip
        if num_envs < 1:
            raise UsageError(f"num_envs must be at least 1, got {num_envs}")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError as error:
            modes = ", ".join(repr(mode.value) for mode in AutoresetMode)
            raise UsageError(f"autoreset_mode must be one of {modes}, got {autoreset_mode!r}") from error
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs, self.render_mode = num_envs, checked_mode(render_mode)
        self.options = DreamOptions.of(options)
        subject = subject_of(checkpoint, spaces, starts, self.options.device)
        self.dreams = Dreams(subject, self.options, num_envs, render=render_mode is not None)
        self.starts = subject.starts
        if not self.dreams.draws:
            self.metadata["render_modes"] = []
        self.single_observation_space, self.single_action_space = (
            self.dreams.observation_space, self.dreams.action_space,
        )  # fmt: skip
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._random: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int | None] = [None] * num_envs
        self._seen: list[Any] = [None] * num_envs

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        seeds = self._spread(seed)
        options = dict(options or {})
        mask = self._mask(options.pop("reset_mask", None))
        starts = options.pop("start", None)
        starts = [starts] * self.num_envs if starts is None or np.ndim(starts) == 0 else list(starts)
        if len(starts) != self.num_envs:
            raise UsageError(f"{len(starts)} starts for {self.num_envs} dreams")
        infos: dict[str, Any] = {}
        for row in np.flatnonzero(mask):
            infos = self._add_info(infos, self.begin(int(row), seeds[row], {**options, "start": starts[row]}), int(row))
        self._look(np.flatnonzero(mask))
        return self.batched(), infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        told, began, finals = self.advance(list(iterate(self.action_space, actions)))
        infos: dict[str, Any] = {}
        for row in range(self.num_envs):
            if row in finals:
                last = {"final_obs": finals[row], "final_info": told[row].info}
                infos = self._add_info(infos, last, row)
            infos = self._add_info(infos, began[row] if row in began else told[row].info, row)
        rewards, terminated, truncated = (
            np.array([getattr(told[row], name) if row in told else kind(0) for row in range(self.num_envs)], kind)
            for name, kind in (("reward", np.float64), ("terminated", np.bool_), ("truncated", np.bool_))
        )
        return self.batched(), rewards, terminated, truncated, infos

    def advance(self, actions: Sequence[Any]) -> tuple[dict[int, Row], dict[int, dict[str, Any]], dict[int, Any]]:
        """One step with the resets that the mode asks for, row by row: what the dreams gave that were stepped, the
        infos of those begun, and (SAME_STEP) the last observations of those that ended."""
        if len(actions) != self.num_envs:
            raise UsageError(f"{len(actions)} actions for {self.num_envs} dreams")
        began: dict[int, dict[str, Any]] = {}
        finals: dict[int, Any] = {}
        if any(seen is None for seen in self._seen):
            raise UsageError("the dreams have not begun: call reset first")
        due = np.flatnonzero(self.dreams.over) if self.autoreset_mode == AutoresetMode.NEXT_STEP else []
        told = self.dreams.step({row: actions[row] for row in range(self.num_envs) if row not in due})
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            due = np.flatnonzero(self.dreams.over)
            finals = self.dreams.observe(int(row) for row in due)
        for row in due:
            began[int(row)] = self.begin(int(row))
        self._look(range(self.num_envs))
        return told, began, finals

    def begin(self, row: int, seed: int | None = None, options: dict[str, Any] | None = None) -> dict[str, Any]:
        """Begins one dream, as `gymnasium.Env.reset` seeds it; returns its info."""
        if seed is not None or self._random[row] is None:
            self._random[row], self._seeds[row] = gym.utils.seeding.np_random(seed)
        return self.dreams.begin(row, self._random[row], options)

    def render(self) -> tuple[np.ndarray, ...] | None:
        if self.render_mode is None:
            return None
        pictures = self.dreams.pictures(range(self.num_envs))
        return tuple(coloured(pictures[row]) for row in range(self.num_envs))

    @property
    def np_random(self) -> tuple[np.random.Generator | None, ...]:
        """The generator of every dream."""
        return tuple(self._random)

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:
        """The seed of every dream."""
        return tuple(self._seeds)

    def _look(self, rows: Any) -> None:
        for row, seen in self.dreams.observe(int(row) for row in rows).items():
            self._seen[row] = seen

    def batched(self) -> Any:
        """The newest observations of all dreams, in fresh arrays."""
        space = self.single_observation_space
        if any(seen is None for seen in self._seen):
            raise UsageError("reset all dreams before resetting some of them with reset_mask")
        return concatenate(space, self._seen, create_empty_array(space, self.num_envs))

    def _spread(self, seed: Seeds) -> list[int | None]:
        if seed is None or isinstance(seed, (int, np.integer)):
            return [None if seed is None else int(seed) + row for row in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise UsageError(f"{len(seed)} seeds for {self.num_envs} dreams")
        return [None if one is None else int(one) for one in seed]

    def _mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, bool)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise UsageError(f"reset_mask must be a numpy array of {self.num_envs} bools, got {mask!r}")
        if not mask.any():
            raise UsageError("reset_mask is False everywhere: nothing to reset")
        return mask
