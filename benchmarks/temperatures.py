"""At which temperature should dreams teach? A table as Ha and Schmidhuber's (2018, VizDoom), for a run of one's own.

python -m benchmarks.temperatures runs/carracing --json benchmarks/carracing/temperatures.json

The world of the run's best agent is frozen. For every temperature and seed a fresh actor-critic learns in its dreams
alone, as configured in the run otherwise, and is then judged in the dream that taught it, in the dream at temperature
1, and in reality. Beside it: the policy that the run itself learned with that world, and an untrained one.

The dropout of dreams is varied in the same way where the world has one (Wellmer and Kwok's "Dropout's Dream Land",
2021), and beside actor-critics linear controllers can evolve (CMA-ES) in the same frozen world:

python -m benchmarks.temperatures runs/world-models --temperatures 1 --dropouts 0 0.05 0.1 0.2 --generations 200

Dreams begin where the run has been: every episode of its replay memory is filtered once more, by the frozen world (the
states that the replay remembers were written by older versions of it), and steps spread evenly over each are kept.
Every tenth episode is held out from the policies: from there, the same 256 states for all, dreams are judged.

With --json the file is written after every row, and an interrupted table is gone on with: rows that are there are kept.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

import worldmodel
from worldmodel import storage
from worldmodel.agent import Agent, build
from worldmodel.config import TRACKS, Config
from worldmodel.envs.starts import spread
from worldmodel.errors import UsageError
from worldmodel.eval.gap.transfer import mode_of, weigh
from worldmodel.eval.machine import cpu_cores, cpu_model
from worldmodel.eval.real import evaluate
from worldmodel.models.base import WorldModel, dream
from worldmodel.randomness import RowNoise, generator, local_randomness
from worldmodel.train.frozen import learn_policy, policy_in
from worldmodel.train.hindsight import look_back
from worldmodel.train.memory import remembered
from worldmodel.train.schedule import fast_precision

TEMPERATURES = (0.5, 0.8, 1.0, 1.15, 1.3, 1.5)
HELD_OUT, JUDGED_FROM = 10, 256
WATCHED = ("dream/reward", "policy/value", "policy/entropy", "evolution/return", "evolution/best")
OWN, LEARNED = "the run's own", ("learned", "evolved")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a training run, with its replay")
    parser.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES)
    parser.add_argument(
        "--dropouts", type=float, nargs="+", default=(0.0,), help="of the dreams, with every temperature"
    )
    parser.add_argument("--generations", type=int, default=0, help="also evolve a controller, for so many generations")
    parser.add_argument(
        "--see", choices=("z and h", "z"), help="what fresh policies see of a vae-mdn-rnn, if not as before"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=(1,))
    parser.add_argument("--updates", type=int, default=1000, help="of every policy")
    parser.add_argument("--members", type=int, default=1, help="of a policy that learns; more act by their mean")
    parser.add_argument("--per-episode", type=int, default=64, help="states of a real episode that dreams start from")
    parser.add_argument("--horizon", type=int, default=50, help="agent steps of the dreams that judge")
    parser.add_argument("--episodes", type=int, default=20, help="real episodes that judge, on the selection tracks")
    parser.add_argument("--agents", type=Path, help="keep every agent in a folder of its own here (for worldmodel gap)")
    parser.add_argument("--json", type=Path, help="write the table here")
    args = parser.parse_args()
    began = time.perf_counter()
    stage = prepare(args.run, args.per_episode, args.horizon, args.episodes, args.members, args.see)
    print(f"{len(stage.starts)} states to dream from, in {time.perf_counter() - began:.0f} s", flush=True)
    if any(args.dropouts) and not hasattr(stage.world, "dropout"):
        raise UsageError("--dropouts: only dreams of a vae-mdn-rnn know dropout; leave it out for this run")
    result = begin(args.json, stage, args.updates, args.per_episode, args.generations)
    done = {Row(row["policy"], row["temperature"], row.get("dropout", 0.0), row["seed"]) for row in result["rows"]}
    for asked in plan(stage.config, args.temperatures, args.dropouts, args.seeds, bool(args.generations)):
        if asked in done or (asked.policy == OWN and not stage.own):
            continue
        row, pilot = one(stage, asked, args.generations if asked.policy == "evolved" else args.updates)
        result["rows"].append(row)
        if args.json:
            storage.write_file(args.json, result)
        if args.agents and asked.policy in LEARNED:
            pilot.save(args.agents / asked.folder, {"temperatures": row})
        print(f"{asked}: real {row['real']['mean']:.1f}, {row['seconds']:.0f} s", flush=True)
    print(table(result["rows"], args.horizon))


class Row(NamedTuple):
    """What a row is about."""

    policy: str
    temperature: float | None
    dropout: float
    seed: int | None

    @property
    def folder(self) -> str:
        parts = ["evolved"] if self.policy == "evolved" else []
        parts += [f"temperature-{self.temperature:g}"] + ([f"dropout-{self.dropout:g}"] if self.dropout else [])
        return "-".join([*parts, f"seed-{self.seed}"])


@dataclass(frozen=True)
class Stage:
    """What all rows share."""

    agent: Agent
    """The run's best, in float32: its world filters and judges."""
    own: bool
    """Whether its own policy is judged as well."""
    world: WorldModel
    """The same world, at the precision in which this machine is fast."""
    config: Config
    starts: Tensor
    """(N, S) that teach"""
    judged_from: Tensor
    """(<= 256, S) of other episodes"""
    horizon: int
    episodes: int


def prepare(
    run: Path, per_episode: int, horizon: int, episodes: int, members: int = 1, see: str | None = None
) -> Stage:
    """Opens the run, which is only read. `see`: in place of `--world-models.see`, for all policies but the run's own,
    which is left out."""
    agent = worldmodel.load(run)
    own = see in (None, agent.config.world_models.see)
    if not own:
        if agent.config.world.kind != "vae-mdn-rnn":
            raise UsageError("--see: only a vae-mdn-rnn knows pictures without memory; leave it out for this run")
        agent.world.config = replace(agent.config.world_models, see=see)
        agent.config = replace(agent.config, world_models=agent.world.config)
    seen = look_back(agent, remembered(run), math.inf, per_episode)
    if seen is None or seen.age.max() < HELD_OUT:
        raise UsageError(f"{run} remembers fewer than {HELD_OUT} whole episodes: let it train longer")
    held = torch.from_numpy(seen.age % HELD_OUT == HELD_OUT - 1)
    judged_from = seen.states[held]
    # The critic's loss on replayed rewards is not one in dreams: it is left out, and the table says so.
    policy = replace(agent.config.policy, replay_value=0.0, members=members)
    config = replace(agent.config, precision=fast_precision(str(agent.device)), policy=policy)
    precision = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    world = build(config, agent.spaces, precision).to(agent.device).world
    world.load_state_dict(agent.world.state_dict())
    world.requires_grad_(False)
    return Stage(agent, own, world, config, seen.states[~held], judged_from[spread(len(judged_from), JUDGED_FROM)],
                 horizon, episodes)  # fmt: skip


def begin(path: Path | None, stage: Stage, updates: int, per_episode: int, generations: int = 0) -> dict[str, Any]:
    """The table so far. Raises UsageError when the file holds one that was made otherwise."""
    p, o = stage.config.policy, stage.config.optim
    facts = {
        "settings": {
            "updates": updates, "members": p.members, "dreams": p.starts, "learned_horizon": p.horizon,
            "discount": p.discount, "final_discount": p.final_discount, "entropy": p.entropy,
            "policy_lr": o.policy_lr, "decay": o.decay,
            "precision": stage.config.precision, "replay_value_of_the_run": stage.agent.config.policy.replay_value,
            "per_episode": per_episode, "horizon": stage.horizon, "episodes": stage.episodes, "mode": "mode",
            "tracks": TRACKS["select"],
        }
        | ({"generations": generations, "evolution": asdict(stage.config.evolution)} if generations else {})
        | ({} if stage.own else {"see": stage.config.world_models.see}),
        "world": {"agent_version": stage.agent.version, "cost": stage.agent.card.get("cost")},
        "starts": len(stage.starts), "judged_from": len(stage.judged_from),
    }  # fmt: skip
    machine = {
        "cpu": cpu_model(), "cores": cpu_cores(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "gymnasium": gymnasium.__version__, "worldmodel": worldmodel.__version__,
    }  # fmt: skip
    if path is None or not path.exists():
        return facts | {"machine": machine, "rows": []}
    old = storage.read_file(path)
    if other := [name for name, value in facts.items() if old.get(name) != value]:
        raise UsageError(f"{path} holds a table made otherwise ({', '.join(other)} differ): choose another --json")
    return old


def plan(
    config: Config, temperatures: list[float], dropouts: list[float], seeds: list[int], evolve: bool = False
) -> Iterator[Row]:
    """All rows; all temperatures of a seed before the next seed."""
    yield Row(OWN, config.policy.temperature, config.world_models.dropout, None)
    for seed in seeds:
        yield Row("untrained", None, 0.0, seed)
        for name in LEARNED[: 1 + evolve]:
            for temperature in temperatures:
                yield from (Row(name, temperature, dropout, seed) for dropout in dropouts)


def one(stage: Stage, asked: Row, updates: int) -> tuple[dict[str, Any], Agent]:
    """A row and its agent, after so many updates (evolved: generations)."""
    began, curve = time.perf_counter(), []
    pilot = stage.agent.fork()
    if asked.policy == "untrained":
        pilot.policy = policy_in(stage.world, pilot.spaces, stage.config, asked.seed)
    elif asked.policy in LEARNED:
        kind = "evolution" if asked.policy == "evolved" else "actor-critic"
        policy = replace(stage.config.policy, temperature=asked.temperature, kind=kind)
        config = replace(stage.config, policy=policy)
        pilot.config = replace(pilot.config, policy=policy)

        def note(update: int, metrics: dict[str, Tensor]) -> None:
            if update % max(1, updates // 20) == 0:
                seen = {key: round(float(metrics[key]), 4) for key in WATCHED if key in metrics}
                curve.append({"update": update} | seen)

        with dropping(stage.world, asked.dropout):
            pilot.policy = learn_policy(stage.world, pilot.spaces, stage.starts, config, updates, asked.seed, note)
    pilot.policy.precision = torch.float32
    learned = time.perf_counter()
    row = asked._asdict() | judge(stage, pilot, asked.temperature or 1.0, asked.dropout)
    seconds = {"learning_seconds": learned - began, "seconds": time.perf_counter() - began}
    return row | {key: round(value, 1) for key, value in seconds.items()} | {"curve": curve}, pilot


@contextmanager
def dropping(world: WorldModel, dropout: float) -> Iterator[None]:
    """Dreams of `world` with that dropout, for a while; 0 where a world has none."""
    was = getattr(world, "dropout", None)
    if was is not None:
        world.dropout = dropout
    try:
        yield
    finally:
        if was is not None:
            world.dropout = was


def judge(stage: Stage, pilot: Agent, temperature: float, dropout: float) -> dict[str, Any]:
    """Mean returns: dreamed over `horizon` agent steps as the policy learned, and at temperature 1 without dropout, and
    of whole real episodes.

    `real_per_horizon` is what reality paid on average in as many steps, over the whole of its episodes: dreams begin
    elsewhere, so a dream that pays a little more is no proof of anything, one that pays far more than that is.
    """
    seeds = range(TRACKS["select"], TRACKS["select"] + stage.episodes)
    result = evaluate(pilot, seeds)
    steps = sum(episode.length for episode in result.episodes)
    return {
        "dream": dreamed(stage, pilot, temperature, dropout), "dream_at_1": dreamed(stage, pilot, 1.0, 0.0),
        "real_per_horizon": float(result.returns.sum()) / steps * stage.horizon,
        "real": result.summary() | {"laps_finished": result.laps_finished, "returns": result.returns.tolist()},
    }  # fmt: skip


def dreamed(stage: Stage, pilot: Agent, temperature: float, dropout: float) -> float:
    """Mean return of dreams in which `pilot` takes its likeliest actions; the same starts and noise for everyone."""
    bare, states = stage.agent.world, stage.judged_from
    world = bare if temperature == 1 else bare.tempered(temperature)
    noise = RowNoise([generator(0, row) for row in range(len(states))])
    with torch.no_grad(), local_randomness(0, states.device), noise, dropping(bare, dropout):
        told = dream(world, states, mode_of(pilot, sample=False), stage.horizon)
    return float(weigh(told.rewards, told.conts).sum(0).mean())


def table(rows: list[dict[str, Any]], horizon: int) -> str:
    """For people: a line for every policy, temperature and dropout, over its seeds; ± is the spread of episodes."""
    lines = [f"{'policy':14} {'temperature':>11} {'dropout':>7} {f'dreamed, {horizon} steps':>19} "
             f"{'plain dream':>12} {f'real, {horizon} steps':>15} {'real episode':>17}  laps    each seed"]  # fmt: skip
    kinds = {(row["policy"], row["temperature"], row.get("dropout", 0.0)) for row in rows}
    order = (OWN, "untrained", *LEARNED)
    for kind in sorted(kinds, key=lambda kind: (order.index(kind[0]), kind[1] or 0, kind[2])):
        same = [row for row in rows if (row["policy"], row["temperature"], row.get("dropout", 0.0)) == kind]
        own, at_1, paid = (np.mean([row[key] for row in same]) for key in ("dream", "dream_at_1", "real_per_horizon"))
        returns = np.concatenate([row["real"]["returns"] for row in same])
        laps = [row["real"]["laps_finished"] for row in same]
        counted = "-" if None in laps else f"{sum(laps)}/{len(returns)}"
        each = " ".join(f"{row['real']['mean']:.0f}" for row in same)
        real = f"{returns.mean():.1f} ± {returns.std(ddof=len(returns) > 1):.1f}"
        told = "-" if kind[1] is None else f"{kind[1]:g}"
        lines.append(f"{kind[0]:14} {told:>11} {kind[2]:>7g} {own:19.1f} {at_1:12.1f} {paid:15.1f} {real:>17}  "
                     f"{counted:7} {each}")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
