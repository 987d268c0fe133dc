"""Open loop: what the dream shows, pays and ends at every distance from the last look, under the true actions.

Beside it stand a ceiling (the decoded posterior, which sees every frame), two floors (the last true frame; the mean
frame of all recordings) and a control (the same dream under shuffled actions: a deaf one shows the same).
Windows come one from each (episode, third). The dream starts at the agent's own posterior of the moment, so its memory
is that of the whole episode up to there, not of a few frames.

    obs_0 ...... obs_o | obs_o+1   obs_o+2 ...                  o: the origin, the last look
                state_o -> k = 1 ---> k = 2 ...                 k: imagined steps
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from worldmodel.eval.draw import as_float
from worldmodel.eval.fidelity import HORIZONS, mse, psnr
from worldmodel.eval.gap.episodes import Lived
from worldmodel.eval.gap.forks import Start
from worldmodel.eval.gap.similarity import ssim, track_iou
from worldmodel.eval.gap.transfer import dream_from, real_plans
from worldmodel.eval.openloop import device_of, pictures
from worldmodel.models.base import Dream

if TYPE_CHECKING:
    from worldmodel.agent import Agent

CONTEXT = 10
GRID = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 65, 80, 100, 125, 150, 175, 200)
"""Imagined steps at which pictures are compared; the table shows `HORIZONS` alone, the half-life reads all."""

CHUNK = 64
PANEL = 12 / 96
"""Share of CarRacing's picture, from below, that is instruments."""

Windows = Sequence[Start]


@dataclass(frozen=True)
class Scores:
    """What was measured, one column a window; NaN where a window does not reach."""

    horizons: tuple[int, ...]
    windows: tuple[Start, ...]
    frames: dict[str, np.ndarray]
    """`dream_mse`, `reconstruction_psnr`, ... -> (horizons, windows) float64: at exactly k imagined steps."""
    rewards: np.ndarray
    """(steps, windows, 3): dreamed reward, real reward, dreamed cont."""
    terminal: np.ndarray
    """(steps, windows) bool: the episode really ended here."""
    survival: np.ndarray
    """(steps, windows): dreamed probability of still going on, the product of the conts so far; also beyond the end of
    the episode, where the dream is given zeros as actions."""


def choose_windows(
    lived: Sequence[Lived], *, settle: int = 0, context: int = CONTEXT, seed: int = 0, limit: int | None = None
) -> list[Start]:
    """One origin in each (episode, third), with `context` frames seen and at least one step to come."""
    rng, windows = np.random.default_rng([seed, context]), []
    for episode in lived:
        edges = np.linspace(max(context - 1, settle), episode.length - 1, 4)
        for low, high in zip(np.ceil(edges[:-1]).astype(int), np.ceil(edges[1:]).astype(int), strict=True):
            if high > low:
                windows.append(Start(episode, int(rng.integers(low, high))))
    if limit is not None and len(windows) > limit:
        windows = [windows[i] for i in sorted(rng.choice(len(windows), limit, replace=False))]
    return windows


def measure(
    agent: Agent, windows: Windows, lived: Sequence[Lived], steps: int, *, car_racing: bool = False, seed: int = 0
) -> Scores:
    """Dreams `steps` steps from every window under its true and under shuffled actions, and compares."""
    ruler, horizons = Ruler.of(agent, lived, car_racing), tuple(k for k in GRID if k <= steps)
    parts = [
        _chunk(agent, windows[begin : begin + CHUNK], ruler, steps, horizons, seed)
        for begin in range(0, len(windows), CHUNK)
    ]
    names = sorted({name for part in parts for row in part[0] for name in row})
    tables = {n: np.concatenate([_stack(part[0], n, part[1].shape[1]) for part in parts], 1) for n in names}
    rewards, terminal, survival = (np.concatenate([part[i] for part in parts], 1) for i in (1, 2, 3))
    return Scores(horizons, tuple(windows), tables, rewards, terminal, survival)


def redream(agent: Agent, scores: Scores, seed: int) -> Iterator[tuple[Windows, Dream]]:
    """The very dreams that were measured with this `seed`, under the true actions: as many windows at once as then."""
    steps = len(scores.rewards)
    for begin in range(0, len(scores.windows), CHUNK):
        windows = scores.windows[begin : begin + CHUNK]
        yield windows, dream_from(agent, agent.world, windows, steps, real_plans(windows, steps), seed)


@dataclass(frozen=True)
class Ruler:
    """What all recordings together give to every comparison."""

    mean_frame: np.ndarray | None
    """(H, W, C) float32; None for a world that draws no pictures."""
    spread: float
    """Standard deviation of the posterior's features, all dimensions together."""
    actions: np.ndarray
    """(N, A): all that were really taken."""
    car_racing: bool

    @classmethod
    def of(cls, agent: Agent, lived: Sequence[Lived], car_racing: bool) -> Ruler:
        """Of these recordings."""
        states = torch.from_numpy(np.concatenate([e.states[::5] for e in lived])).to(device_of(agent.world))
        with torch.no_grad():
            spread = agent.world.features(states).double().var(0, correction=0).sum().sqrt()
            draws = agent.world.decode(states[:1]) is not None
        actions = np.concatenate([episode.recording.actions[: episode.length] for episode in lived])
        if not draws:
            return cls(None, float(spread), actions, car_racing)
        total = sum(episode.recording.image.sum(0, dtype=np.float64) for episode in lived)
        mean = total / sum(len(episode.recording) for episode in lived) / 255
        return cls(as_float(np.asarray(mean)), float(spread), actions, car_racing)


Rows = list[dict[str, tuple[list[int], np.ndarray]]]
"""For each horizon: name -> (windows that reach it, their values)."""


def _stack(rows: Rows, name: str, windows: int) -> np.ndarray:
    """(horizons, windows) with NaN where nothing was measured."""
    table = np.full((len(rows), windows), np.nan)
    for i, row in enumerate(rows):
        if name in row:
            table[i, row[name][0]] = row[name][1]
    return table


def _chunk(
    agent: Agent, windows: Windows, ruler: Ruler, steps: int, horizons: Sequence[int], seed: int
) -> tuple[Rows, np.ndarray, np.ndarray, np.ndarray]:
    true = dream_from(agent, agent.world, windows, steps, real_plans(windows, steps), seed)
    shuffled = dream_from(agent, agent.world, windows, steps, shuffled_plans(windows, ruler.actions, steps, seed), seed)
    rows: Rows = []
    for k in horizons:
        reach = [b for b, w in enumerate(windows) if w.t + k < w.lived.length]  # the last frame was never filtered
        values: dict[str, np.ndarray] = {}
        if reach:
            chosen = [windows[b] for b in reach]
            values |= _latent(agent, chosen, true.states[k, reach], k, ruler)
            if ruler.mean_frame is not None:
                values |= _frames(agent, chosen, true.states[k, reach], shuffled.states[k, reach], k, ruler)
        rows.append({name: (reach, value) for name, value in values.items()})
    return rows, *_outcomes(windows, true, steps), true.conts.double().cumprod(0).cpu().numpy()


def _frames(
    agent: Agent, windows: Windows, true: Tensor, shuffled: Tensor, k: int, ruler: Ruler
) -> dict[str, np.ndarray]:
    """Every picture at k imagined steps beside the true one; one value a window."""
    truth = np.stack([w.lived.recording.image[w.t + k] for w in windows])
    with torch.no_grad():
        states = torch.stack([true, posteriors(agent, windows, k), shuffled])
        dreamed, rebuilt, misled = pictures(agent.world, states).float().cpu().numpy()
    streams = {
        "dream": dreamed, "reconstruction": rebuilt,
        "persistence": np.stack([w.lived.recording.image[w.t] for w in windows]),
        "mean_frame": np.broadcast_to(ruler.mean_frame, truth.shape),
    }  # fmt: skip
    out: dict[str, np.ndarray] = {}
    rows = truth.shape[1] - round(truth.shape[1] * PANEL) if ruler.car_racing else None
    for name, picture in streams.items():
        out[f"{name}_mse"] = mse(picture, truth)
        out[f"{name}_psnr"] = psnr(out[f"{name}_mse"])
        if k in HORIZONS:
            out[f"{name}_ssim"] = ssim(picture, truth)
        if rows is not None:
            out[f"{name}_cropped_psnr"] = psnr(mse(picture[:, :rows], truth[:, :rows]))
            out[f"{name}_track_iou"] = track_iou(picture[:, :rows], truth[:, :rows])
            if k in HORIZONS:
                out[f"{name}_cropped_ssim"] = ssim(picture, truth, rows)
    out["shuffled_psnr"] = psnr(mse(misled, truth))
    out["action_fidelity"] = out["dream_psnr"] - out["shuffled_psnr"]
    return out


def _latent(agent: Agent, windows: Windows, states: Tensor, k: int, ruler: Ruler) -> dict[str, np.ndarray]:
    """`drift`: distance of the dreamed features from the posterior's, in their standard deviations; `kl`: nats by which
    the dream is surprised when it may look at last, for worlds with `surprise(state, obs) -> (B,)`."""
    out: dict[str, np.ndarray] = {}
    with torch.no_grad():
        dreamed, seen = (agent.world.features(x).double() for x in (states, posteriors(agent, windows, k)))
        if ruler.spread > 0:
            out["drift"] = ((dreamed - seen).square().sum(-1).sqrt() / ruler.spread).cpu().numpy()
        if hasattr(agent.world, "surprise"):
            out["kl"] = agent.world.surprise(states, seen_at(windows, k, states.device)).double().cpu().numpy()
    return out


def posteriors(agent: Agent, windows: Windows, k: int) -> Tensor:
    """(B, S): what the agent really knew k steps after the origin."""
    return torch.from_numpy(np.stack([w.lived.states[w.t + k] for w in windows])).to(device_of(agent.world))


def seen_at(windows: Windows, k: int, device: torch.device) -> dict[str, Tensor]:
    """name -> (B, ...): what was really observed k steps after the origin."""
    return {
        name: torch.from_numpy(np.stack([w.lived.recording.obs[name][w.t + k] for w in windows])).to(device)
        for name in windows[0].lived.recording.obs
    }


def _outcomes(windows: Windows, true: Dream, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(steps, B, 3) of dreamed reward, real reward, dreamed cont; and (steps, B) whether the episode ended there."""
    table = np.full((steps, len(windows), 3), np.nan)
    terminal = np.zeros((steps, len(windows)), bool)
    dreamed = torch.stack([true.rewards, true.conts], -1).double().cpu().numpy()
    for b, window in enumerate(windows):
        reach = min(steps, window.lived.length - window.t)
        table[:reach, b, 0], table[:reach, b, 2] = dreamed[:reach, b].T
        table[:reach, b, 1] = window.lived.rewards[window.t + 1 : window.t + 1 + reach]
        terminal[:reach, b] = window.lived.recording.is_terminal[window.t + 1 : window.t + 1 + reach]
    return table, terminal


def shuffled_plans(windows: Windows, pool: np.ndarray, steps: int, seed: int) -> Tensor:
    """(steps, B, A): every action drawn anew from `pool` (N, A): alike in kind, wrong in time."""
    drawn = [np.random.default_rng([seed, 1, w.seed, w.t]).integers(len(pool), size=steps) for w in windows]
    return torch.from_numpy(np.stack([pool[index] for index in drawn], 1))
