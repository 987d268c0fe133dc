"""A scripted driver for CarRacing: what a few lines of geometry achieve, and a cheap way to see the whole track."""

from __future__ import annotations

import gymnasium as gym
import numpy as np


def pursuit(env: gym.Env, ahead: int = 6, cruise: float = 35.0) -> np.ndarray:
    """CarRacing's own continuous action (steer, gas, brake) (3,) float32 that follows the road.

    Steers towards the tile `ahead` of the nearest one and holds the speed `cruise` (world units a second), less in
    bends. It reads the car's true state from `env`, which an agent cannot see.
    """
    base = env.unwrapped
    x, y = base.car.hull.position
    track = np.array(base.track)[:, 2:4]
    nearest = int(np.argmin(((track - [x, y]) ** 2).sum(1)))
    dx, dy = track[(nearest + ahead) % len(track)] - [x, y]
    turn = (np.arctan2(dy, dx) - np.pi / 2 - base.car.hull.angle + np.pi) % (2 * np.pi) - np.pi
    speed = np.hypot(*base.car.hull.linearVelocity)
    brake = 0.3 if speed > 50 or (abs(turn) > 0.5 and speed > 25) else 0.0
    return np.array([np.clip(-2 * turn, -1, 1), 0.5 if speed < cruise else 0.0, brake], np.float32)
