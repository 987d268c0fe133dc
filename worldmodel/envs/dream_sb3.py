"""Dreams for stable-baselines3, which has a vector environment of its own: `PPO("MlpPolicy", DreamVecEnv(path, 16))`.

gymnasium                                 stable-baselines3
terminated, truncated                     done, with info["TimeLimit.truncated"]
infos["final_obs"], SAME_STEP             info["terminal_observation"]; the observation begins the next dream
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from worldmodel.envs.dream_vector import DreamVectorEnv
from worldmodel.errors import UsageError

try:
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
except ImportError as error:
    raise UsageError(f"DreamVecEnv needs stable-baselines3 (pip install stable-baselines3): {error}") from error


Indices = int | Iterable[int] | None


class DreamVecEnv(VecEnv):
    """`num_envs` dreams as a stable-baselines3 `VecEnv`; arguments as for `DreamVectorEnv`.

    Behaves as `DummyVecEnv([DreamEnv, ...])`, with one forward pass for every `rows` dreams.
    """

    def __init__(self, checkpoint: Any, num_envs: int = 1, **kwargs: Any) -> None:
        if "autoreset_mode" in kwargs:
            raise UsageError("stable-baselines3 begins a new dream as soon as one ends: leave out autoreset_mode")
        self.dreams = DreamVectorEnv(checkpoint, num_envs, autoreset_mode="SameStep", **kwargs)
        self.metadata = self.dreams.metadata
        super().__init__(num_envs, self.dreams.single_observation_space, self.dreams.single_action_space)

    def reset(self) -> Any:
        options = [dict(one) for one in self._options]
        for one in options:
            if unknown := one.keys() - {"start"}:
                raise UsageError(f"reset knows the option 'start', not {sorted(unknown)}")
        starts = [one.get("start") for one in options]
        observations, infos = self.dreams.reset(seed=list(self._seeds), options={"start": starts})
        names = [name for name in infos if not name.startswith("_")]
        self.reset_infos = [{name: infos[name][row].item() for name in names} for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        told, began, finals = self.dreams.advance(list(self._actions))
        infos = []
        for row in range(self.num_envs):
            info = {**told[row].info, "TimeLimit.truncated": told[row].truncated and not told[row].terminated}
            if row in began:
                info["terminal_observation"] = finals[row]
                self.reset_infos[row] = began[row]
            infos.append(info)
        rewards = np.array([told[row].reward for row in range(self.num_envs)], np.float32)
        return self.dreams.batched(), rewards, np.array([row in began for row in range(self.num_envs)]), infos

    def close(self) -> None:
        self.dreams.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        if self.render_mode is None:
            warnings.warn("the dreams were made without render_mode='rgb_array': nothing to see", stacklevel=2)
            return [None] * self.num_envs
        return list(self.dreams.render())

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        return [getattr(self.dreams, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise UsageError(f"all dreams share {attr_name!r}: it can only be set for all of them")
        setattr(self.dreams, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Indices = None, **kwargs: Any) -> Any:
        raise UsageError(f"dreams have no method {method_name!r} of their own: call it on `.dreams`, for all of them")

    def env_is_wrapped(self, wrapper_class: type, indices: Indices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
