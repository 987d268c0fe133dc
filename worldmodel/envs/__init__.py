"""Real environments, brought into the one form that the agent knows.

Importing this registers `worldmodel/CarRacing-v3`, the toy worlds and the dream, `worldmodel/Dream-v0`, with
gymnasium; nothing heavier is imported.
"""

from __future__ import annotations

import difflib
from typing import Any

import gymnasium as gym

from worldmodel.config import EnvConfig
from worldmodel.envs.spaces import Spaces
from worldmodel.envs.wrappers import wrap
from worldmodel.errors import UsageError

__all__ = ["Spaces", "make", "wrap"]

gym.register("worldmodel/CarRacing-v3", "worldmodel.envs.car_racing:CarRacing", reward_threshold=900,
             max_episode_steps=1000)  # fmt: skip
gym.register("worldmodel/Corridor-v0", "worldmodel.envs.toy:Corridor")
gym.register("worldmodel/Echo-v0", "worldmodel.envs.toy:Echo")
gym.register("worldmodel/Dream-v0", "worldmodel.envs.dream:DreamEnv",
             vector_entry_point="worldmodel.envs.dream_vector:DreamVectorEnv")  # fmt: skip


def make(config: EnvConfig, **kwargs: Any) -> gym.Env:
    """The environment `config.id`, wrapped for the agent; `kwargs` go to `gymnasium.make`.

    Raises UsageError for an unknown id (naming close ones), a missing package, or spaces that are not supported.
    """
    try:
        env = gym.make(config.id, **kwargs)
    except gym.error.DependencyNotInstalled as error:
        raise UsageError(f"environment {config.id!r} needs a package that is not installed: {error}") from error
    except ModuleNotFoundError as error:
        raise UsageError(f"environment {config.id!r} cannot be imported ({error}); install its package") from error
    except gym.error.Error as error:  # malformed, unregistered or outdated
        known = [name for name in gym.registry if not name.startswith(("phys2d/", "tabular/"))]
        near = difflib.get_close_matches(config.id, known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "import the package that registers it first"
        raise UsageError(f"no environment {config.id!r} ({str(error).rstrip('.')}); {hint}") from error
    return wrap(env, config)
