"""The best, the median and the worst dream as pictures that a web page can hold."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from worldmodel.eval.fidelity import HORIZONS
from worldmodel.eval.gap.forks import Start
from worldmodel.eval.gap.horizons import CONTEXT, Scores
from worldmodel.eval.gap.transfer import dream_from, real_plans
from worldmodel.eval.openloop import OpenLoop, device_of, pictures
from worldmodel.eval.video import strip

if TYPE_CHECKING:
    from worldmodel.agent import Agent

JUDGED_AT = 15
"""Imagined steps at which dreams are ranked: the horizon at which the policy learned."""


def filmstrips(agent: Agent, scores: Scores, steps: int, seed: int = 0) -> list[dict[str, Any]]:
    """For each of best, median, worst (PSNR of the dream at `JUDGED_AT` imagined steps, or the last below it): `label`,
    `seed`, `t`, `psnr`, `alt` and `png`, base64. Empty for a world without pictures."""
    table = scores.frames.get("dream_psnr")
    if table is None or not np.isfinite(table).any():
        return []
    row = max(i for i, k in enumerate(scores.horizons) if k <= JUDGED_AT and np.isfinite(table[i]).any())
    order = [int(b) for b in np.argsort(-table[row]) if np.isfinite(table[row, b])]
    places = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    strips = []
    for label, b in places.items():
        start, k = scores.windows[b], scores.horizons[row]
        window = film(agent, start, min(steps, 50, start.lived.length - 1 - start.t), seed)
        strips.append({
            "label": label, "seed": start.seed, "t": start.t, "k": k, "psnr": float(table[row, b]),
            "alt": f"{label} dream by PSNR at {k} imagined steps ({table[row, b]:.1f} dB): track {start.seed} from "
                   f"step {start.t}; rows truth, reconstruction, dream and error, a column for each horizon",
            "png": png(strip(window, [k for k in sorted({*HORIZONS, 10, 30}) if k <= window.horizon], panel=64)),
        })  # fmt: skip
    return strips


def film(agent: Agent, start: Start, steps: int, seed: int) -> OpenLoop:
    """The window of a start as `video.strip` wants it, with the very dream that was measured."""
    r, first = start.lived.recording, start.t - CONTEXT + 1
    span = slice(first, start.t + steps + 1)
    states = torch.from_numpy(start.lived.states[span]).to(device_of(agent.world))
    dreamed = dream_from(agent, agent.world, [start], steps, real_plans([start], steps), seed)
    with torch.no_grad():
        seen = pictures(agent.world, states[:, None])[:, 0].float().cpu().numpy()
        imagined = pictures(agent.world, dreamed.states[1:])[:, 0].float().cpu().numpy()
    unknown = np.full(CONTEXT, np.nan, np.float32)
    rewards, conts = (x[:, 0].float().cpu().numpy() for x in (dreamed.rewards, dreamed.conts))
    return OpenLoop(
        truth=r.image[span], reconstruction=seen, dream=np.concatenate([seen[:CONTEXT], imagined]),
        actions=r.actions[span], reward_paid=r.rewards[span],
        reward_posterior=np.full(len(seen), np.nan, np.float32), reward_dream=np.concatenate([unknown, rewards]),
        cont_posterior=np.full(len(seen), np.nan, np.float32), cont_dream=np.concatenate([unknown, conts]),
        terminal=r.is_terminal[span], start=first, context=CONTEXT, discrete=r.discrete,
        step_seconds=r.step_seconds, action_names=r.action_names,
    )  # fmt: skip


def png(picture: np.ndarray) -> str:
    """An RGB uint8 picture as base64 PNG with at most 256 colours."""
    out = io.BytesIO()
    Image.fromarray(picture).quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        out, format="PNG", optimize=True
    )
    return base64.b64encode(out.getvalue()).decode()
