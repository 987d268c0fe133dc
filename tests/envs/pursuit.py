"""A simple driver that stays on the road: it steers towards the tile six ahead and holds a moderate speed."""

from __future__ import annotations

import gymnasium as gym
import numpy as np


def pursuit(env: gym.Env) -> np.ndarray:
    """CarRacing's continuous action (steer, gas, brake) for the state of `env`."""
    base = env.unwrapped
    x, y = base.car.hull.position
    track = np.array(base.track)[:, 2:4]
    nearest = int(np.argmin(((track - [x, y]) ** 2).sum(1)))
    dx, dy = track[(nearest + 6) % len(track)] - [x, y]
    turn = (np.arctan2(dy, dx) - np.pi / 2 - base.car.hull.angle + np.pi) % (2 * np.pi) - np.pi
    speed = np.hypot(*base.car.hull.linearVelocity)
    brake = 0.3 if speed > 50 or (abs(turn) > 0.5 and speed > 25) else 0.0
    return np.array([np.clip(-2 * turn, -1, 1), 0.5 if speed < 35 else 0.0, brake], np.float32)
