"""How fast our CarRacing is beside gymnasium's, measured side by side on the same driven episodes.

    python -m benchmarks.env            a table
    python -m benchmarks.env --json     ... and, as the last line, one JSON object

Three environments take the same actions, each held for 4 frames, in alternating blocks: stock and ours drawing every
frame, and ours behind `ActionRepeat(4)`, which draws one frame in four. The pictures after every action, the rewards
and the flags are compared outside the timed blocks. Times are CPU seconds of this process; a speed-up is the ratio of
the median times per frame over the blocks. Measured on two cores busy with training: 6.8 x drawing every frame and
19.1 x at action repeat 4 with the C module, 3.9 x and 12.1 x where it is not built and pygame paints. About 20 s.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass, field
from statistics import median
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np

import worldmodel.envs  # noqa: F401  (registers the environment)
from worldmodel.envs.car_canvas import native
from worldmodel.envs.pursuit import pursuit
from worldmodel.envs.wrappers import ActionRepeat

REPEAT = 4


@dataclass
class Lane:
    """One environment of the race: `hold` of its steps take one action. Times are CPU seconds a frame, one a block."""

    env: gym.Env
    hold: int
    times: list[float] = field(default_factory=list)
    total: float = 0.0
    frames: int = 0

    def drive(self, actions: list[np.ndarray]) -> list[tuple[np.ndarray, float, bool, bool]]:
        """Takes each action for REPEAT frames; (picture, summed reward, terminated, truncated) after every action."""
        results = []
        start = process_time()
        for action in actions:
            paid = 0.0
            for _ in range(self.hold):
                picture, reward, terminated, truncated, _ = self.env.step(action)
                paid += float(reward)
                if terminated or truncated:
                    break
            results.append((picture, paid, terminated, truncated))
        elapsed = process_time() - start
        frames = len(actions) * REPEAT
        self.times.append(elapsed / frames)
        self.total += elapsed
        self.frames += frames
        return results


def plan(seed: int, steps: int) -> list[np.ndarray]:
    """The scripted driver's actions on track `seed`, decided every REPEAT frames, without drawing; fewer if it ends."""
    env = gym.make("worldmodel/CarRacing-v3")
    env.reset(seed=seed)
    env.unwrapped.skip_observation = True
    actions: list[np.ndarray] = []
    while len(actions) < steps:
        action = pursuit(env)
        for _ in range(REPEAT):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated:
                return actions  # the unfinished action is left out: all blocks have whole ones
        actions.append(action)
        if truncated:
            break
    return actions


def same(a: list[tuple], b: list[tuple]) -> bool:
    """Whether two lanes saw and were paid the same, bit for bit."""
    return all(np.array_equal(x[0], y[0]) and x[1:] == y[1:] for x, y in zip(a, b, strict=True))


def measure(seeds: list[int], steps: int, block: int) -> dict[str, Any]:
    """The figures of `seeds` episodes of at most `steps` actions, in blocks of `block` actions."""
    lanes = {
        "stock": Lane(gym.make("CarRacing-v3"), REPEAT),
        "ours": Lane(gym.make("worldmodel/CarRacing-v3"), REPEAT),
        "repeat4": Lane(ActionRepeat(gym.make("worldmodel/CarRacing-v3"), REPEAT), 1),
    }
    identical, compared = True, 0
    for seed in seeds:
        actions = plan(seed, steps)
        first = [lane.env.reset(seed=seed)[0] for lane in lanes.values()]
        identical &= all(np.array_equal(picture, first[0]) for picture in first)
        for start in range(0, len(actions), block):
            results = {name: lane.drive(actions[start : start + block]) for name, lane in lanes.items()}
            identical &= same(results["stock"], results["ours"]) and same(results["stock"], results["repeat4"])
            compared += 2 * len(results["stock"])
    middle = {name: median(lane.times) for name, lane in lanes.items()}
    return {
        "speedup_render": round(middle["stock"] / middle["ours"], 2),
        "speedup_repeat4": round(middle["stock"] / middle["repeat4"], 2),
        "speedup_render_mean": round(lanes["stock"].total / lanes["ours"].total, 2),
        "speedup_repeat4_mean": round(lanes["stock"].total / lanes["repeat4"].total, 2),
        "identical_frames": bool(identical),
        "compared_frames": compared,
        "fps_stock": round(1 / middle["stock"], 1),
        "fps_ours": round(1 / middle["ours"], 1),
        "fps_repeat4": round(1 / middle["repeat4"], 1),
        "frames": lanes["stock"].frames,
        "blocks": len(lanes["stock"].times),
        "painted_by": "pygame" if native() is None else "the C module",
        "gymnasium": gym.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [("", "frames/CPU s", "speed-up", "of the mean")]
    rows.append(("gymnasium's CarRacing-v3", f"{figures['fps_stock']:.0f}", "", ""))
    for label, key in (("ours, every frame drawn", "render"), ("ours, action repeat 4", "repeat4")):
        fps = figures["fps_ours" if key == "render" else "fps_repeat4"]
        speedup, mean = figures[f"speedup_{key}"], figures[f"speedup_{key}_mean"]
        rows.append((label, f"{fps:.0f}", f"{speedup:.2f} x", f"{mean:.2f} x"))
    lines = [f"{a:<26}{b:>12}{c:>12}{d:>13}" for a, b, c, d in rows]
    verdict = "identical" if figures["identical_frames"] else "DIFFERENT"
    lines.append(f"{figures['compared_frames']} pictures compared: {verdict}; gymnasium {figures['gymnasium']}, "
                 f"painted by {figures['painted_by']}")  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Our CarRacing beside gymnasium's.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--episodes", type=int, default=2, help="driven episodes (default 2)")
    parser.add_argument("--steps", type=int, default=250, help="most actions an episode, 4 frames each (default 250)")
    parser.add_argument("--block", type=int, default=10, help="actions a block (default 10)")
    arguments = parser.parse_args()
    figures = measure(list(range(arguments.episodes)), arguments.steps, arguments.block)
    print(json.dumps(figures) if arguments.json else table(figures))
    return 0 if figures["identical_frames"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
