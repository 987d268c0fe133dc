"""Agent = world model + policy + the state it has filtered so far. Runs and released agents both load as one."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from worldmodel import storage
from worldmodel.config import Config, from_file, to_dict
from worldmodel.envs import Spaces, make, wrap
from worldmodel.envs.car_reading import Reader
from worldmodel.envs.starts import FILE as STARTS
from worldmodel.envs.starts import Starts
from worldmodel.envs.thermometer import thermometer
from worldmodel.envs.wrappers import resize, time_limit
from worldmodel.errors import CorruptError, UsageError
from worldmodel.models.base import WorldModel
from worldmodel.models.rssm import RSSM
from worldmodel.models.world_models import VaeMdnRnn
from worldmodel.policies.base import Policy
from worldmodel.policies.committee import actor_critic
from worldmodel.policies.evolution import Controller

FILES = ("config.json", "spaces.json", "agent.safetensors", "card.json")


class Agent:
    """What acts in an environment.

    Args:
        config: of the run that made it. spaces: what it sees and does. world, policy: on the same device.
    """

    def __init__(self, config: Config, spaces: Spaces, world: WorldModel, policy: Policy):
        self.config, self.spaces, self.world, self.policy = config, spaces, world, policy
        self.card: dict[str, Any] = {}
        self.starts: Starts | None = None  # where its dreams begin; they belong to these very weights
        self.start(1)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.world.parameters()).device

    def start(self, batch: int) -> None:
        """Forgets everything seen: `batch` environments in parallel are about to begin."""
        self.state = self.world.initial(batch)
        self.action = torch.zeros(batch, self.spaces.actions, device=self.device)
        self.reader = Reader(self.config.env)  # of raw pictures
        self.acted = 0  # steps since the last reset, where `act` is not told the time

    @torch.no_grad()
    def step(self, obs: dict[str, np.ndarray], is_first: np.ndarray, sample: bool = False) -> np.ndarray:
        """One step of B parallel environments; draws from torch's global random stream.

        Args:
            obs: name -> (B, H, W, C) uint8 or (B, N) float. is_first: (B,) bool, True after a reset.
            sample: actions sampled from the policy, as in training, or its mode: then the mean over
                `config.policy.beliefs` samples of the state.

        Returns: actions for the environments: (B, A) float32 in [-1, 1], or (B,) int64 choices.
        """
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)).to(self.device) for name, value in obs.items()}
        first = torch.from_numpy(np.asarray(is_first, bool)).to(self.device)
        if len(first) != len(self.state):
            have, want = len(self.state), len(first)
            raise UsageError(f"{want} observations for {have} environments: call start({want}) first")
        before, self.state = self.state, self.world.observe(self.state, self.action, tensors, first)
        action = self.policy.act(self.world.features(self.state), sample)
        if not sample:
            # One by one: noise is drawn row by row, and the rows are the environments (randomness.RowNoise).
            for _ in range(self.config.policy.beliefs - 1):
                other = self.world.observe(before, self.action, tensors, first)
                action = action + self.policy.act(self.world.features(other), sample=False)
            if self.spaces.discrete:
                action = one_hot(action.argmax(-1), self.spaces.actions).to(action.dtype)
            else:
                action = action / self.config.policy.beliefs
        self.action = action
        if self.spaces.discrete:
            return self.action.argmax(-1).cpu().numpy()
        return self.action.clamp(-1, 1).cpu().numpy()

    def act(self, obs: Any, is_first: bool | None = None, sample: bool = False) -> np.ndarray | int:
        """The action for one environment, which remembers what came before.

        Args:
            obs: what an environment wrapped by `wrap` returns, or the raw image or vector of the unwrapped one.
            is_first: True after a reset; left out, only the first call after `start` counts as one.

        Returns: an action for the *wrapped* environment: (A,) float32 in [-1, 1], or an int.
        """
        if len(self.state) != 1:
            self.start(1)
        if is_first is None:
            is_first = not bool(self.state.any())
        batch = {name: value[None] for name, value in self._canonical(obs, is_first).items()}
        action = self.step(batch, np.array([is_first]), sample)[0]
        return int(action) if self.spaces.discrete else action

    def _canonical(self, obs: Any, is_first: bool) -> dict[str, np.ndarray]:
        env = self.config.env
        if not isinstance(obs, dict):
            obs = self.reader.read(np.asarray(obs), None if is_first else env.action_repeat)
        if not isinstance(obs, dict):
            names = [name for name in self.spaces.observations if name != "time" or not env.see_time]
            if len(names) != 1:
                raise UsageError(f"this agent needs a dict of {list(self.spaces.observations)}, not {type(obs)}")
            obs = {names[0]: obs}
        if env.see_time and "time" not in obs:
            self.acted = 0 if is_first else self.acted + 1
            obs = {**obs, "time": thermometer(self.acted * env.action_repeat / time_limit(gym.spec(env.id)))}
        out = {}
        for name, shape in self.spaces.observations.items():
            if name not in obs:
                raise UsageError(f"observation {name!r} is missing; this agent sees {list(self.spaces.observations)}")
            value = np.asarray(obs[name])
            if len(shape) == 3 and shape[2] == 1 and value.ndim == 2:
                value = value[..., None]
            if len(shape) == 3 and value.ndim == 3 and value.shape != shape and value.shape[2] == shape[2]:
                value = resize(value, *shape[:2])
            if value.shape != shape:
                raise UsageError(f"observation {name!r} has shape {value.shape}, this agent was trained on {shape}")
            out[name] = value
        return out

    @property
    def discount(self) -> float:
        """Of the returns that the critic foretells: where a run moves it along, what it had come to with this agent."""
        return self.card.get("discount", self.config.policy.discount)

    def fork(self) -> Agent:
        """An agent with the same weights and a state of its own."""
        other = copy.copy(self)
        other.start(1)
        return other

    def make_env(self, **kwargs: Any) -> gym.Env:
        """The environment it was trained in, wrapped; `kwargs` go to `gymnasium.make`."""
        return make(self.config.env, **kwargs)

    def wrap(self, env: gym.Env) -> gym.Env:
        """Any environment seen and driven as in training: action repeat, image size, action map.

        Raises UsageError when its spaces are not those the agent was trained on.
        """
        wrapped = wrap(env, self.config.env)
        if (spaces := Spaces.of(wrapped)) != self.spaces:
            raise UsageError(f"{env} gives {spaces}, but this agent was trained on {self.spaces}")
        return wrapped

    def weights(self) -> dict[str, Tensor]:
        """All weights, by name: `world.*` and `policy.*`."""
        modules = {"world": self.world, "policy": self.policy}
        return {f"{m}.{name}": value for m, module in modules.items() for name, value in module.state_dict().items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """The inverse of `weights`. Raises CorruptError naming what is missing, unknown or of another shape."""
        own = self.weights()
        wrong = sorted(own.keys() ^ weights.keys()) or [n for n in own if own[n].shape != weights[n].shape]
        if wrong:
            raise CorruptError(f"weights do not fit the configuration, {len(wrong)} differ: {', '.join(wrong[:4])} ...")
        for name, value in own.items():
            value.copy_(weights[name])
        self.starts = None

    @property
    def version(self) -> str:
        """SHA-256 over names and weights: two agents of one version act alike."""
        digest = hashlib.sha256()
        for name, value in sorted(self.weights().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path, card: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Writes an agent folder, atomically, with the starts of its dreams if it has any.

        Args:
            card: scores, seeds, cost: whatever a stranger should know. dtype: of the weights on disk; half precision
                is half the size, but another agent than the one in memory.
        """
        # Scalars stay as they are: they cost nothing, and the scale of returns may lie beyond float16 (65504).
        weights = {name: value.to(dtype) if value.ndim else value for name, value in self.weights().items()}
        contents = (to_dict(self.config), self.spaces.to_dict(), weights, card or self.card)
        files: dict[str, Any] = dict(zip(FILES, contents, strict=True))
        if self.starts is not None:
            files[STARTS] = self.starts.tensors()
        storage.write_folder(path, files)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Agent:
        """The agent of a run folder (its best), or of an agent folder; in float32, whatever it was trained in.

        Raises UsageError when nothing is there, or what another version wrote, and CorruptError when a file is not what
        was written.
        """
        folder = Path(path)
        if not storage.exists(folder) and storage.exists(folder / "best"):
            folder = folder / "best"
        if not storage.exists(folder):
            raise UsageError(f"no agent in {str(path)!r}: give a run folder with a best agent, or an agent folder")
        contents = storage.read_folder(folder, FILES, optional=[STARTS])
        config, spaces, weights, card = (contents[name] for name in FILES)
        agent = build(from_file(config, folder / FILES[0]), Spaces.from_dict(spaces), torch.float32).to(device)
        agent.load_weights(weights)
        agent.card = card
        if STARTS in contents:
            agent.starts = Starts.from_tensors(contents[STARTS])
            agent.starts.check(agent.state.shape[1])
        return agent

    def to(self, device: str | torch.device) -> Agent:
        """Moves the weights, and forgets everything seen."""
        self.world.to(device)
        self.policy.to(device)
        self.start(1)
        return self

    def __repr__(self) -> str:
        parts = {"encoder": "encoder", "core": "core", "prior": "prior", "decoder": "decoder"}
        parts |= {"vae": "vae", "mdn-rnn": "memory"}
        sizes = {name: _count(getattr(self.world, part, None)) for name, part in parts.items()}
        sizes |= {name: _count(getattr(self.policy, name, None)) for name in ("actor", "critic")}
        lines = [f"  {name:<10}{_short(size):>8}" for name, size in sizes.items() if size]
        see = ", ".join(f"{name} {shape}" for name, shape in self.spaces.observations.items())
        does = f"{self.spaces.actions} {'choices' if self.spaces.discrete else 'continuous actions'}"
        head = f"Agent({self.config.env.id}: {see} -> {does}; world {_short(_count(self.world))} parameters)"
        return "\n".join([head, *lines])


def build(config: Config, spaces: Spaces, precision: torch.dtype) -> Agent:
    """A new, untrained agent; `precision` is the dtype of its matrix multiplications."""
    world = _world(config, spaces, precision)
    return Agent(config, spaces, world, build_policy(config, world, spaces, precision))


def build_policy(config: Config, world: WorldModel, spaces: Spaces, precision: torch.dtype) -> Policy:
    """A new, untrained policy for `world`; on the CPU, wherever the world is."""
    features = world.features(world.initial(1)).shape[-1]
    if config.policy.kind == "actor-critic":
        return actor_critic(features, spaces.actions, spaces.discrete, config.policy, precision)
    if config.policy.kind == "evolution":
        return Controller(features, spaces.actions, spaces.discrete, config.evolution.noise)
    raise UsageError(f"--policy.kind must be actor-critic or evolution, not {config.policy.kind}")


def _world(config: Config, spaces: Spaces, precision: torch.dtype) -> WorldModel:
    if config.world.kind == "rssm":
        return RSSM(spaces.observations, spaces.actions, config.world, precision)
    if config.world.kind == "vae-mdn-rnn":
        return VaeMdnRnn(spaces.observations, spaces.actions, config.world_models, precision)
    raise UsageError(f"--world.kind must be rssm or vae-mdn-rnn, not {config.world.kind}")


def _count(module: torch.nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def _short(count: int) -> str:
    """Such as 5.23 M, 31 k, 4,711."""
    if count >= 999_500:
        return f"{count / 1e6:.2f} M"
    return f"{count / 1e3:.0f} k" if count >= 10_000 else f"{count:,}"
