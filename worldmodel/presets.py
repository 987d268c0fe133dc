"""The named presets: configurations that are worth a name, with what was changed from the defaults and why."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from worldmodel.config import (
    Config,
    EnvConfig,
    EvolutionConfig,
    OptimConfig,
    PolicyConfig,
    ReplayConfig,
    WorldConfig,
    WorldModelsConfig,
)
from worldmodel.errors import UsageError


def size(deter: int, **overrides: Any) -> Config:
    """A published size of DreamerV3: deter = 8 hidden, units = hidden, classes = depth = hidden / 16."""
    hidden = deter // 8
    world = WorldConfig(deter=deter, hidden=hidden, blocks=8, stoch=32, classes=hidden // 16, units=hidden,
                        vision="paper", depth=hidden // 16, norm="rms", decode_share=1.0)  # fmt: skip
    policy = PolicyConfig(units=hidden, layers=3, starts=0, discount=1 - 1 / 333, norm="rms")
    optim = OptimConfig(world_lr=4e-5, policy_lr=4e-5, warmup=1000)
    return Config(world=world, policy=policy, optim=optim, replay=ReplayConfig(batch=16, length=64), **overrides)


PRESETS: dict[str, Config] = {
    "carracing": Config(
        env=EnvConfig(read_score=True, see_time=True, see_tiles=True, see_misses=True),
        world=WorldConfig(vector_layers=1),
        policy=PolicyConfig(
            final_discount=0.999,
            final_entropy=1e-4,
            final_noise=0.3,
            mean_penalty=1e-3,
            smoothness=0.02,
            smoothness_from=0.25,
            max_scale=100.0,
            replay_value=10.0,
            beliefs=4,
        ),
        optim=OptimConfig(world_lr=1.2e-3, policy_lr=3e-4, decay=0.3, world_decay=0.75),
        replay=ReplayConfig(mirror=True, recent=0.5, newest=1500, after=250),
        minutes=0.0,
        frames=100_000,
        updates=6000,
        train_every=3.2,
        relearn=1000,
        relearn_members=3,
        greedy_from=0.5,
        greedy_every=2,
        finalists=3,
        eval_minutes=6.0,
        eval_episodes=20,
    ),
    "small": Config(),
    "debug": Config(
        world=WorldConfig(deter=64, hidden=32, stoch=8, classes=8, units=32, depth=8),
        policy=PolicyConfig(units=32, starts=64, horizon=8),
        replay=ReplayConfig(batch=8, length=16, gigabytes=0.5),
        prefill=300,
        pretrain=10,
        eval_minutes=0.0,
        eval_episodes=2,
        save_minutes=0.2,
        minutes=0.0,
        updates=200,
    ),
    "1m": size(512),
    "12m": size(2048),
    "25m": size(3072),
    "50m": size(4096),
    "100m": size(6144),
    "200m": size(8192),
}
"""Named configurations: `carracing` is the main job, `carracing-fast` a third of it, `small` its size for any task,
`debug` runs in seconds, those named by a size are DreamerV3's; `world-models` is the main job with the other world,
`world-models-cma` that with a controller that CMA-ES evolves, and `world-models-2018` the latter in the frozen regime
with the published sizes."""
# Discount and entropy bonus move less far, noise stays, and actions are sampled to the end, for a beginner still has to
# find the road.
PRESETS["carracing-fast"] = replace(
    PRESETS["carracing"],
    minutes=18.0,
    updates=0,
    relearn=0,
    finalists=1,
    eval_minutes=4.5,
    greedy_from=1.0,
    policy=replace(PRESETS["carracing"].policy, final_discount=0.995, final_entropy=2e-4, final_noise=1.0),
)
# As its figures were made.
PRESETS["world-models"] = replace(
    PRESETS["carracing"],
    env=EnvConfig(read_score=True, see_time=True),
    greedy_from=1.0,
    updates=8500,
    train_every=2.4,
    relearn=1000,
    relearn_times=3,
    relearn_members=3,
    finalists=1,
    policy=PolicyConfig(final_discount=0.998, final_entropy=1e-4, replay_value=1.0, beliefs=4),
    optim=OptimConfig(policy_lr=3e-4, decay=0.3),
    world=WorldConfig(kind="vae-mdn-rnn"),
    world_models=WorldModelsConfig(kl_scale=0.1, mixture_layers=1, mixture_scale=8.0),
    replay=ReplayConfig(),
)
# Without averaged weights: the controller that is judged meets the very world that it evolved in.
PRESETS["world-models-cma"] = replace(
    PRESETS["world-models"],
    relearn=0,
    policy=PolicyConfig(kind="evolution"),
    optim=replace(PRESETS["world-models"].optim, average=0.0),
)
# 240,000 frames of random driving (the original: 10 million) in 0.8 GB; a third of the time for V and M alone, which
# settle (decay) while C evolves, some 1200 generations (the original: 1800). Planned by the pace of an update (2 s) and
# of a generation (5 to 6 s) with one thread on a busy machine; only the beginning of a smaller one was made
# (docs/experiments.md). Temperature: the one with the best real score in the original's VizDoom.
PRESETS["world-models-2018"] = replace(
    PRESETS["world-models-cma"],
    env=EnvConfig(),
    world_models=WorldModelsConfig(vision="2018", decode_share=1.0),
    policy=PolicyConfig(kind="evolution", temperature=1.15),
    evolution=EvolutionConfig(every=2),
    optim=OptimConfig(decay=0.65, final=0.02, average=0.0),
    prefill=60_000,
    pretrain=3000,
    train_every=0.0,
    minutes=300.0,
    frames=0,
    updates=0,
    eval_minutes=20.0,
)


def preset(name: str) -> Config:
    """The named preset. Raises UsageError, naming the nearest presets, when there is none of that name."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS) or list(PRESETS)
    raise UsageError(f"no preset {name!r}; did you mean {' or '.join(near)}?")
