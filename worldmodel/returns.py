"""The only return code of the project."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_return(rewards: Tensor, values: Tensor, discounts: Tensor, lam: float | Tensor) -> Tensor:
    """Lambda-returns R_0 ... R_{H-1} (DreamerV3, arXiv 2301.04104, equation 7).

        state     s_0      s_1      ...   s_H
        action        a_0      a_1 ...
        reward        r_1      r_2  ...   r_H      row i of `rewards` is r_{i+1}, received on arriving at s_{i+1}
        value              v_1      ...   v_H      row i of `values`, `discounts` likewise belongs to s_{i+1}
        return    R_0      R_1      ...            R_t = r_{t+1} + d_{t+1} ((1 - lam) v_{t+1} + lam R_{t+1}),  R_H = v_H

    Args:
        rewards: (H, B). values: (H, B). discounts: (H, B), gamma times the probability that the episode goes on.
        lam: one number, or (H, B), row i of which mixes v_{i+1} and R_{i+1}.

    Returns: (H, B), the return from s_0 ... s_{H-1}.
    """
    if not rewards.shape == values.shape == discounts.shape:
        raise ValueError(f"shapes differ: {tuple(rewards.shape)}, {tuple(values.shape)}, {tuple(discounts.shape)}")
    following = values[-1]
    mixed = lam if isinstance(lam, Tensor) else [lam] * len(rewards)
    out = []
    for t in reversed(range(len(rewards))):
        following = rewards[t] + discounts[t] * ((1 - mixed[t]) * values[t] + mixed[t] * following)
        out.append(following)
    return torch.stack(out[::-1])


def moving(progress: float, first: float, last: float) -> float:
    """What at `progress` (0 to 1) of a run has come geometrically from `first` towards `last` (both positive)."""
    share = min(1.0, max(0.0, progress))
    return first ** (1 - share) * last**share


def moving_discount(progress: float, first: float, last: float) -> float:
    """Discount at `progress` (0 to 1) of a run whose horizon 1 / (1 - discount) moves geometrically from that of
    `first` to that of `last`; a `last` of 0 leaves it at `first`."""
    return 1 - moving(progress, 1 - first, 1 - last) if last else first


def discount_weights(discounts: Tensor) -> Tensor:
    """Weights (H, B) of s_0 ... s_{H-1}: products of those discounts (H, B) of s_1 ... s_H that come before each."""
    return torch.cat([torch.ones_like(discounts[:1]), discounts[:-1]]).cumprod(0)
